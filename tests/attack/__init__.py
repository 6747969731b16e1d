"""What strangers and mistakes do to an installation: each file plays one kind of fault."""
