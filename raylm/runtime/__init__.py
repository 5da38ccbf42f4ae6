"""The one way to Ray: connections, nodes, shares of a cluster, and every private Ray call in one module."""
