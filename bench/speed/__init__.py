"""The gateway's speed compared with its limits and its peers, in rounds that take turns."""
