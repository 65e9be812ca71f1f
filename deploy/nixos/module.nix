# NixOS module: services.tunnelgw.edge and services.tunnelgw.connector.
# `settings` is edge.toml or connector.toml as Nix values; docs/configuration.md describes the keys.
{ config, lib, pkgs, ... }:

let
  inherit (lib) mkEnableOption mkIf mkMerge mkOption optional types;

  cfg = config.services.tunnelgw;
  toml = pkgs.formats.toml { };

  edgeFile = toml.generate "edge.toml" cfg.edge.settings;
  connectorFile = toml.generate "connector.toml" (
    cfg.connector.settings
    // lib.optionalAttrs (cfg.connector.invitationFile != null) {
      # LoadCredential hands the service a copy that only its user can read.
      invitation_file = "/run/credentials/tunnelgw-connector.service/invitation";
    }
  );

  hardening = {
    Type = "notify";
    ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
    Restart = "always";
    RestartSec = 1;
    TimeoutStopSec = 60;
    User = "tunnelgw";
    Group = "tunnelgw";
    UMask = "0077";
    StateDirectoryMode = "0700";
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    PrivateTmp = true;
    PrivateMounts = true;
    LimitCORE = 0;
    PrivateDevices = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" "AF_NETLINK" ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    RemoveIPC = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [ "@system-service" "~@privileged" ];
    SystemCallErrorNumber = "EPERM";
  };

  common = {
    wantedBy = [ "multi-user.target" ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    startLimitIntervalSec = 0;
  };
in
{
  options.services.tunnelgw = {
    package = mkOption {
      type = types.package;
      description = "The tunnelgw package; it has bin/tunnelgw.";
    };

    edge = {
      enable = mkEnableOption "the tunnelgw edge, the public side of the tunnels";
      settings = mkOption {
        type = toml.type;
        default = { };
        example = { domain = "example.com"; };
        description = "edge.toml as Nix values. Secrets do not belong here: the Nix store is readable by everybody.";
      };
      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = "Open TCP 443 and 80. Raw ports of services are opened by hand.";
      };
    };

    connector = {
      enable = mkEnableOption "the tunnelgw connector, the home side of the tunnels";
      settings = mkOption {
        type = toml.type;
        default = { };
        example = { services.jellyfin.target = "http://127.0.0.1:8096"; };
        description = "connector.toml as Nix values.";
      };
      invitationFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/run/keys/tunnelgw-invitation";
        description = "A file with the invitation; read once, as long as there is no identity.";
      };
    };
  };

  config = mkMerge [
    (mkIf (cfg.edge.enable || cfg.connector.enable) {
      users.users.tunnelgw = {
        isSystemUser = true;
        group = "tunnelgw";
        home = "/var/lib/tunnelgw";
      };
      users.groups.tunnelgw = { };
      environment.systemPackages = [ cfg.package ];
      # Programs may choose BBR, which fills a line that loses packets (docs/performance.md).
      boot.kernelModules = [ "tcp_bbr" ];
      boot.kernel.sysctl."net.ipv4.tcp_allowed_congestion_control" = lib.mkDefault "reno cubic bbr";
    })

    (mkIf cfg.edge.enable {
      environment.etc."tunnelgw/edge.toml".source = edgeFile;
      networking.firewall.allowedTCPPorts = lib.optionals cfg.edge.openFirewall [ 443 80 ];
      systemd.services.tunnelgw-edge = common // {
        description = "tunnelgw edge (public side of the tunnels)";
        reloadTriggers = [ edgeFile ];
        serviceConfig = hardening // {
          ExecStart = "${cfg.package}/bin/tunnelgw edge run --config /etc/tunnelgw/edge.toml";
          KillMode = "mixed";
          StateDirectory = "tunnelgw/edge";
          LimitNOFILE = 262144;
          CapabilityBoundingSet = [ "CAP_NET_BIND_SERVICE" ];
          AmbientCapabilities = [ "CAP_NET_BIND_SERVICE" ];
          ProtectHome = true;
        };
      };
    })

    (mkIf cfg.connector.enable {
      environment.etc."tunnelgw/connector.toml".source = connectorFile;
      systemd.services.tunnelgw-connector = common // {
        description = "tunnelgw connector (home side of the tunnels)";
        reloadTriggers = [ connectorFile ];
        serviceConfig = hardening // {
          ExecStart = "${cfg.package}/bin/tunnelgw connect --config /etc/tunnelgw/connector.toml";
          StateDirectory = "tunnelgw/connector";
          LimitNOFILE = 65536;
          CapabilityBoundingSet = [ "" ];
          ProtectHome = "read-only";
          LoadCredential = optional (cfg.connector.invitationFile != null) "invitation:${cfg.connector.invitationFile}";
        };
      };
    })
  ];
}
