//! PURE: the shell script that replaces a host program.

use std::path::Path;

use crate::testbed::CommandFault;

/// The name of a fault in the fault files.
pub(super) fn word(failing: CommandFault) -> &'static str {
    match failing {
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
pub(super) fn script(trap: &Path, real: &Path, program: &str, path: &str) -> String {
    SCRIPT
        .replace("@TRAP@", &trap.to_string_lossy())
        .replace("@REAL@", &real.to_string_lossy())
        .replace("@PROGRAM@", program)
        .replace("@PATH@", path)
}

// A hang is short, and ends as the driver's deadline would end it: by SIGKILL. The real deadlines are 15 s to 180 s.
const SCRIPT: &str = r#"#!/bin/sh
trap='@TRAP@' real='@REAL@' PATH='@PATH@' CSI_GATE='@TRAP@'
export PATH CSI_GATE
line="@PROGRAM@ $*"
[ -d "$trap" ] && echo "$$ $line" >>"$trap/journal"
# All nodes are on one kernel, and xfs refuses another disk with the UUID of one that is mounted: a LUN that was taken away.
case $line in "mount -t xfs "*) set -- -o nouuid "$@" ;; esac

# The command, as a fault wants it.
run() {
  for fault in "$trap"/faults/*; do
    [ -e "$fault" ] || break
    read -r failing part <"$fault" || continue
    case $line in *"$part"*) ;; *) continue ;; esac
    case $fault in
      *.always) ;;
      *) rm "$fault" 2>/dev/null || continue ;;
    esac
    echo "$failing $line" >>"$trap/hits"
    case $failing in
      fails) echo "it fails, as a fault says" >&2; return 1 ;;
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

if ! [ -e "$trap/left" ]; then
  for fault in "$trap"/faults/*; do
    [ -e "$fault" ] || exec "$real" "$@"
    run "$@"; exit
  done
fi
read -r left <"$trap/left"
case $left in
  1 | @PROGRAM@) ;;
  *[!0-9]*) run "$@"; exit ;;
  *) echo $((left - 1)) >"$trap/left"; run "$@"; exit ;;
esac
rm "$trap/left"
read -r when act <"$trap/when"
case $when in
  before) ;;
  after) run "$@" ;;
  *)
    "$real" "$@" & sleep "$when"
    # What a kill leaves of an ext4 that is being resized unmounted takes a person (design.md#node-expansion-is-always-required).
    case $line in resize2fs*) ;; *) kill -9 $! ;; esac
    # A container that ends does not start again before all its processes have gone.
    wait $! ;;
esac
if [ "$act" = kill ]; then
  # The driver is who has started this.
  echo "$line" >"$trap/tripped.new"
  mv "$trap/tripped.new" "$trap/tripped"
  kill -9 $PPID
  exit 137
fi
echo "$$ @PROGRAM@" >"$trap/held.new"
mv "$trap/held.new" "$trap/held"
while [ -d "$trap" ] && [ ! -e "$trap/go" ]; do sleep 0.05; done
[ -d "$trap" ] && [ "$when" = before ] && exec "$real" "$@"
"#;
