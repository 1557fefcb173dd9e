"""What sessions need of the operating system: files of identities and state, DNS, the workers of a port."""
