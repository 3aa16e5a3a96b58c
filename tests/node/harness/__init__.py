"""A real node: a kubelet, containerd and the network of a cluster, all on this machine and gone when it ends."""
