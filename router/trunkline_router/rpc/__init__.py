"""The contract's services, one file each: they translate, and the core decides."""
