//! What is said once, and not each time that it is seen again.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Enough for what a NAS has to say; beyond that it is said each time.
const MOST: usize = 256;

/// What this process has said already.
#[derive(Debug, Default)]
pub struct LogOnce(Mutex<BTreeSet<String>>);

impl LogOnce {
    /// It has not been said before.
    pub fn first(&self, text: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(text) {
            return false;
        }
        if told.len() < MOST {
            told.insert(text.to_owned());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once() {
        let told = LogOnce::default();
        assert!(told.first("a") && told.first("b") && !told.first("a"));
    }
}
