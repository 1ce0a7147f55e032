//! Who may use the cluster beside whom: most tests together, one that stops a part of it alone.

use std::sync::{Condvar, Mutex, PoisonError};

struct Users {
    shared: u32,
    alone: bool,
}

static USERS: Mutex<Users> = Mutex::new(Users { shared: 0, alone: false });
static CHANGED: Condvar = Condvar::new();

/// The right to use the cluster, until it is dropped.
pub struct Turn {
    alone: bool,
}

impl Turn {
    /// Waits until nobody has the cluster alone, or, to have it `alone`, until nobody uses it.
    pub fn take(alone: bool) -> Self {
        let users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |users: &mut Users| users.alone || (alone && users.shared > 0);
        let mut users = CHANGED.wait_while(users, busy).unwrap_or_else(PoisonError::into_inner);
        if alone {
            users.alone = true;
        } else {
            users.shared += 1;
        }
        Self { alone }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        if self.alone {
            users.alone = false;
        } else {
            users.shared -= 1;
        }
        CHANGED.notify_all();
    }
}
