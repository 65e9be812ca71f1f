"""The process at home: dials the edge and serves local targets."""
