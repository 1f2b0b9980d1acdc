//! Suppresses repeated log messages.

use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Maximum number of remembered messages; beyond that they are logged each time.
const MAX_MESSAGES: usize = 256;

/// The messages that this process has logged.
#[derive(Debug, Default)]
pub struct LogOnce(Mutex<BTreeSet<String>>);

impl LogOnce {
    /// Whether `text` has not been logged before; remembers it.
    pub fn is_first(&self, text: &str) -> bool {
        let mut logged = self.0.lock();
        if logged.contains(text) {
            return false;
        }
        if logged.len() < MAX_MESSAGES {
            logged.insert(text.to_owned());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_logged_once() {
        let log = LogOnce::default();
        assert!(log.is_first("a") && log.is_first("b") && !log.is_first("a"));
    }
}
