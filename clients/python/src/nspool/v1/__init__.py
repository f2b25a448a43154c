"""Generated code of the contract `nspool.v1`; `generate.sh` makes it anew."""
