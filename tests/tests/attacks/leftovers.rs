//! What one job leaves for the next one: ACLs, attributes and flags, files, memory of the volumes.
