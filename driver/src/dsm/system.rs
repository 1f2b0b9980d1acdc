//! `SYNO.Core.System` v1 `info`: the uptime of the NAS. Pure. Evidence: `proto/dsm/system_info.json`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::call::Call;

/// `data` of `info`. DSM 6 and 7 return some thirty fields; only this one is used.
#[derive(Debug, Deserialize)]
pub struct SystemAnswer {
    #[serde(default)]
    up_time: Value,
}

impl SystemAnswer {
    /// The uptime of the NAS: `75:12:9` is hours, minutes and seconds. `None`: absent, or in another format.
    pub fn up_time(&self) -> Option<Duration> {
        let text = self.up_time.as_str()?;
        let parts: Vec<u64> = text
            .split(':')
            .map(|part| part.trim().parse().ok())
            .collect::<Option<_>>()?;
        match parts.as_slice() {
            [hours, minutes @ 0..=59, seconds @ 0..=59] => {
                let seconds = hours
                    .checked_mul(3600)?
                    .checked_add(minutes * 60 + seconds)?;
                Some(Duration::from_secs(seconds))
            }
            _ => None,
        }
    }
}

/// `info` without a `type`: model, serial number, up time.
pub fn info() -> Call {
    Call::new("SYNO.Core.System", 1, "info")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_up_time_is_hours_minutes_and_seconds() {
        let up = |text: &str| {
            serde_json::from_str::<SystemAnswer>(text)
                .unwrap()
                .up_time()
                .map(|up| up.as_secs())
        };
        assert_eq!(
            up(r#"{"up_time":"75:12:9","model":"DS918+"}"#),
            Some(270_729)
        );
        assert_eq!(up(r#"{"up_time":"0:0:0"}"#), Some(0));
        for text in [
            "{}",
            r#"{"up_time":null}"#,
            r#"{"up_time":75}"#,
            r#"{"up_time":"75:12"}"#,
            r#"{"up_time":"1:60:0"}"#,
            r#"{"up_time":"3 days"}"#,
            r#"{"up_time":"99999999999999999999:0:0"}"#,
            r#"{"up_time":"18446744073709551615:0:0"}"#,
        ] {
            assert_eq!(up(text), None, "{text}");
        }
    }
}
