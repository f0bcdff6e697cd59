"""How fast canobatch is, beside its peers, in the same run. See `README.md`."""
