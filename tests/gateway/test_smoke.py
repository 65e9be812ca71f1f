from tests.gateway.fakes import World


def test_get():
    world = World()
    protocol, transport = world.connect()
    for _ in range(3):
        protocol.data_received(b"GET /x HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        stream = world.opener.last
        sent = stream.take()
        assert sent.startswith(b"GET /x HTTP/1.1\r\nhost: a.example.com\r\n")
        stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        assert transport.take() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    assert len(world.opener.streams) == 1
