//! The user of a spool, who can name files, set modes and ACLs, and choose what job.json says.
