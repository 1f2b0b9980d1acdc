//! CPU time of a task: of its process and of all descendants that were waited for. A daemon that outlives its parent is not
//! counted.

use std::{fs, process::Child, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};

/// The sum of user and system time.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage(pub(super) Duration);

/// The unit of `/proc/PID/stat` (`USER_HZ`), the same on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// Waits for a process, adds its CPU time to `cpu_time`, and returns whether its exit code was 0.
///
/// # Errors
/// When `/proc/PID/stat` cannot be read.
pub(super) fn wait(mut child: Child, cpu_time: &mut Usage) -> Result<bool> {
    let pid = Pid::from_raw(child.id().try_into()?);
    // With WNOWAIT it stays a zombie, so that /proc/PID/stat can still be read.
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let file = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    cpu_time.0 += read(&text).with_context(|| format!("{file}: {text}"))?;
    Ok(child.wait()?.success())
}

/// The sum of utime, stime, cutime and cstime of `/proc/PID/stat`. The program's name, in parentheses, may itself contain
/// parentheses and spaces.
fn read(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().skip(11).take(4).collect();
    let ticks: u32 = fields
        .iter()
        .map(|field| field.parse::<u32>().ok())
        .sum::<Option<u32>>()?;
    (fields.len() == 4).then(|| TICK * ticks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{context::Context, run::Cmd};

    #[test]
    fn the_four_times_are_added_whatever_the_program_is_called() {
        let stat = "7 (a) b (c)) Z 1 7 7 0 -1 4 10 20 0 0 100 20 3000 4 20 0 1 0 5 0 0";
        assert_eq!(read(stat), Some(Duration::from_millis(31_240)));
        assert_eq!(read("7 (a) Z 1 7 7 0 -1 4 10 20 0 0 100 20 3000"), None);
        assert_eq!(read("7 (a) Z 1 7 7 0 -1 4 10 20 0 0 100 x 3000 4"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn cpu_time_includes_children_and_the_exit_code_is_returned() {
        let context = Context::read().unwrap();
        let mut cpu_time = Usage::default();
        // The child shell does the work; the first one only waits for it.
        let busy = "sh -c 'i=0; while [ $i -lt 500000 ]; do i=$((i + 1)); done'; exit 3";
        let child = Cmd::new(&context, "sh -c").arg(busy).spawn().unwrap();
        assert!(!wait(child, &mut cpu_time).unwrap());
        assert!(cpu_time.0 > Duration::ZERO, "{cpu_time:?}");
        let child = Cmd::new(&context, "true").spawn().unwrap();
        assert!(wait(child, &mut cpu_time).unwrap());
    }
}
