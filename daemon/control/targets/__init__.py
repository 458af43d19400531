"""Where a deployment goes: instar-serve, a model repository on a disk, or a server of the V2 protocol."""
