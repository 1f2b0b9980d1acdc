//! How much work a task was: the processor time of its process and of all that it has waited for, and so on down. What outlives its
//! parents, as a daemon does, is not counted.

use std::{fs, process::Child, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};

/// User and system time together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage(pub(super) Duration);

/// What Linux counts in, for every processor (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// Waits for a process, adds what it has used to `work`, and answers whether it ended with 0.
///
/// # Errors
/// Linux does not tell.
pub(super) fn wait(mut child: Child, work: &mut Usage) -> Result<bool> {
    let pid = Pid::from_raw(child.id().try_into()?);
    // It has ended, and still has a number: until it is waited for, its times can be read.
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let file = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    work.0 += read(&text).with_context(|| format!("{file}: {text}"))?;
    Ok(child.wait()?.success())
}

/// utime, stime, cutime and cstime of `/proc/PID/stat`. The program's name stands in parentheses, and may hold any of them, and blanks.
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
    use crate::{context::Context, run::Step};

    #[test]
    fn the_four_times_are_added_whatever_the_program_is_called() {
        let stat = "7 (a) b (c)) Z 1 7 7 0 -1 4 10 20 0 0 100 20 3000 4 20 0 1 0 5 0 0";
        assert_eq!(read(stat), Some(Duration::from_millis(31_240)));
        assert_eq!(read("7 (a) Z 1 7 7 0 -1 4 10 20 0 0 100 20 3000"), None);
        assert_eq!(read("7 (a) Z 1 7 7 0 -1 4 10 20 0 0 100 x 3000 4"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn work_of_a_process_and_of_its_children_is_counted_and_its_code_is_told() {
        let context = Context::read().unwrap();
        let mut work = Usage::default();
        // The work is a child's: the first shell only waits for it.
        let busy = "sh -c 'i=0; while [ $i -lt 500000 ]; do i=$((i + 1)); done'; exit 3";
        let child = Step::new(&context, "sh -c").arg(busy).foreground().unwrap();
        assert!(!wait(child, &mut work).unwrap());
        assert!(work.0 > Duration::ZERO, "{work:?}");
        let child = Step::new(&context, "true").foreground().unwrap();
        assert!(wait(child, &mut work).unwrap());
    }
}
