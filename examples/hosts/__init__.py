"""One theatre in three frameworks: a host application with the gateway mounted inside."""
