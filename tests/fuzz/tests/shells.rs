//! The shells that environment files are held against do find differences, and go on after them.

use latebind_contract::environment::Environment;
use latebind_fuzz::shells::{Shells, starting_environments};

#[test]
fn a_difference_is_found_and_does_not_end_the_shells() {
    let starts = starting_environments();
    let mut shells = Shells::start(&starts[0]);
    let mut env = Environment::new();
    for (name, value) in &starts[0] {
        env.set(name.as_bytes(), value);
    }
    assert_eq!(shells.agree(b"", &env), Ok(()));
    for (text, found) in [
        (&b"A=1"[..], "A=1"),
        (b"A=", "A="),
        (b"echo said", "said"),
        (b"U=other", "U=usual"),
        (b"exit 3", "status 3"),
        (b"A='", "status 2"),
    ] {
        let different = shells.agree(text, &env);
        assert!(different.as_ref().is_err_and(|why| why.contains(found)), "{}: {different:?}", text.escape_ascii());
    }
    env.set(b"A", b"1");
    assert_eq!(shells.agree(b"A=1", &env), Ok(()));
}
