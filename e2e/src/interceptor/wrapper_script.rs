//! PURE: the shell script that replaces a host program.

use std::path::Path;

use crate::testbed::CommandFault;

/// The name of a fault in the fault files.
pub(super) fn fault_name(fault: CommandFault) -> &'static str {
    match fault {
        CommandFault::Fails => "fails",
        CommandFault::FailsAfterwards => "fails-afterwards",
        CommandFault::Hangs => "hangs",
        CommandFault::HangsAfterwards => "hangs-afterwards",
        CommandFault::SaysGarbage => "says-garbage",
        CommandFault::DoesNothing => "does-nothing",
    }
}

/// The wrapper script of `program`; the program itself is `real`. A held script ends by itself once the interceptor's `folder` is
/// gone, for whatever reason. The script runs `real` with the original `path`, so commands that it starts are not wrapped.
pub(super) fn script(folder: &Path, real: &Path, program: &str, path: &str) -> String {
    SCRIPT
        .replace("@FOLDER@", &folder.to_string_lossy())
        .replace("@REAL@", &real.to_string_lossy())
        .replace("@PROGRAM@", program)
        .replace("@PATH@", path)
}

// A hang is short, and ends as the driver's deadline would end it: by SIGKILL. The real deadlines are 15 s to 180 s.
const SCRIPT: &str = r#"#!/bin/sh
folder='@FOLDER@' real='@REAL@' PATH='@PATH@' CSI_GATE='@FOLDER@'
export PATH CSI_GATE
line="@PROGRAM@ $*"
[ -d "$folder" ] && echo "$$ $line" >>"$folder/journal"
# All nodes share one kernel, and xfs refuses a second disk with the UUID of a mounted one: the disk of an unpublished LUN.
case $line in "mount -t xfs "*) set -- -o nouuid "$@" ;; esac

# Runs the command, with the first injected fault that matches it.
run() {
  for fault in "$folder"/faults/*; do
    [ -e "$fault" ] || break
    read -r kind part <"$fault" || continue
    case $line in *"$part"*) ;; *) continue ;; esac
    case $fault in
      *.always) ;;
      *) rm "$fault" 2>/dev/null || continue ;;
    esac
    echo "$kind $line" >>"$folder/hits"
    case $kind in
      fails) echo "injected fault" >&2; return 1 ;;
      fails-afterwards) "$real" "$@"; return 1 ;;
      hangs) sleep 0.3; return 137 ;;
      hangs-afterwards) "$real" "$@"; sleep 0.3; return 137 ;;
      says-garbage)
        "$real" "$@" >/dev/null; status=$?
        printf '\357\277\275\007%%$ blocks= size TYPE 0x00\n\n=\n'
        return $status ;;
      does-nothing) return 0 ;;
    esac
  done
  "$real" "$@"
}

if ! [ -e "$folder/left" ]; then
  for fault in "$folder"/faults/*; do
    [ -e "$fault" ] || exec "$real" "$@"
    run "$@"; exit
  done
fi
read -r left <"$folder/left"
case $left in
  1 | @PROGRAM@) ;;
  *[!0-9]*) run "$@"; exit ;;
  *) echo $((left - 1)) >"$folder/left"; run "$@"; exit ;;
esac
rm "$folder/left"
read -r when action <"$folder/when"
case $when in
  before) ;;
  after) run "$@" ;;
  *)
    "$real" "$@" & sleep "$when"
    # An ext4 whose offline resize is killed needs manual repair (design.md#node-expansion-is-always-required).
    case $line in resize2fs*) ;; *) kill -9 $! ;; esac
    # A container is not restarted before all its processes have ended.
    wait $! ;;
esac
if [ "$action" = kill ]; then
  # The parent is the driver.
  echo "$line" >"$folder/crashed.new"
  mv "$folder/crashed.new" "$folder/crashed"
  kill -9 $PPID
  exit 137
fi
echo "$$ @PROGRAM@" >"$folder/held.new"
mv "$folder/held.new" "$folder/held"
while [ -d "$folder" ] && [ ! -e "$folder/go" ]; do sleep 0.05; done
[ -d "$folder" ] && [ "$when" = before ] && exec "$real" "$@"
"#;
