//! Checks that each known behavior of a NAS is covered by a test of dsm-sim that cites it, or is listed here as not simulated.
//! The numbers are those of dsm-web-api.md: behaviours of section 11, error codes of section 10.3. No I/O.

use std::collections::BTreeSet;

use super::source::File;

/// The numbers of section 11, except 29, which does not exist.
const BEHAVIOURS: std::ops::RangeInclusive<u32> = 1..=30;
const NO_BEHAVIOUR: u32 = 29;
const CODES: [u32; 34] = [
    18_990_002, 18_990_004, 18_990_068, 18_990_318, 18_990_327, 18_990_500, 18_990_501, 18_990_502,
    18_990_503, 18_990_505, 18_990_508, 18_990_513, 18_990_517, 18_990_531, 18_990_532, 18_990_538,
    18_990_540, 18_990_541, 18_990_542, 18_990_543, 18_990_570, 18_990_593, 18_990_619, 18_990_622,
    18_990_635, 18_990_700, 18_990_702, 18_990_708, 18_990_710, 18_990_722, 18_990_724, 18_990_744,
    18_990_745, 18_991_205,
];
/// In two parts, so that this file does not cite anything.
const WORD: &str = concat!("ehav", "iour");

/// Behaviours that are only partly simulated, and the missing part.
const PARTLY_SIMULATED: [(u32, &str); 1] = [(
    11,
    "an initiator's writes fail when the machine's own disk is full, not when the volume is: images are sparse files",
)];

/// Behaviours and error codes that are not simulated, and the reason.
const NOT_SIMULATED: [(u32, &str); 5] = [
    (
        21,
        "without an export nothing listens, and loop has no port; tgt and LIO listen while there is a target, as node-sim's own tests show",
    ),
    (
        27,
        "how long a discard takes depends on the host's file system; the driver never discards when it formats",
    ),
    (
        28,
        "NFS privileges, users and groups do not exist; they will come with file volumes",
    ),
    (
        18_990_722,
        "a guess in a client's table; an unknown target is 18990710, as measured",
    ),
    (
        18_990_724,
        "a guess in a client's table for a target whose file on the NAS is broken",
    ),
];

/// The number of tested behaviours and codes, and those that are neither tested nor listed as not simulated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Coverage {
    tested: usize,
    pub(super) breaches: Vec<String>,
}

impl Coverage {
    /// The report.
    pub(super) fn lines(&self) -> Vec<String> {
        let list = NOT_SIMULATED.iter().chain(&PARTLY_SIMULATED);
        let list = list.map(|(number, why)| format!("  {}: {why}", name(*number)));
        let first = format!(
            "{} behaviours and codes of a NAS have a test on dsm-sim; not or only partly simulated:",
            self.tested
        );
        std::iter::once(first).chain(list).collect()
    }
}

/// Compares the citations in tests with the known behaviours and codes.
pub(super) fn coverage(files: &[File]) -> Coverage {
    let cited = cited(files);
    let known = BEHAVIOURS
        .filter(|number| *number != NO_BEHAVIOUR)
        .chain(CODES);
    let known: BTreeSet<u32> = known.collect();
    let not_simulated: BTreeSet<u32> = NOT_SIMULATED.iter().map(|row| row.0).collect();
    let mut breaches = Vec::new();
    for number in &known {
        match (cited.contains(number), not_simulated.contains(number)) {
            (false, false) => breaches.push(format!(
                "no test cites {} of a NAS: write one, or explain in ci/src/tidy/dsm.rs why it is not simulated",
                name(*number)
            )),
            (true, true) => breaches.push(format!(
                "{} is listed as not simulated, but a test cites it",
                name(*number)
            )),
            (true, false) | (false, true) => {}
        }
    }
    Coverage {
        tested: known.intersection(&cited).count(),
        breaches,
    }
}

fn name(number: u32) -> String {
    if BEHAVIOURS.contains(&number) {
        format!("behaviour {number}")
    } else {
        format!("code {number}")
    }
}

/// The citations in tests of dsm-sim and of e2e. Error codes in e2e do not count, because e2e injects any code as a fault.
fn cited(files: &[File]) -> BTreeSet<u32> {
    let mut cited = BTreeSet::new();
    for file in files.iter().filter(|file| file.is("rs")) {
        let in_e2e = file.path.starts_with("e2e");
        let first = file
            .tests_from()
            .filter(|_| file.path.starts_with("dsm-sim"));
        let Some(first) = first.or(in_e2e.then_some(0)) else {
            continue;
        };
        for line in file.text.lines().skip(first) {
            cited.extend(behaviours(line));
            if in_e2e {
                continue;
            }
            let digits = line.replace('_', "");
            cited.extend(
                CODES
                    .iter()
                    .filter(|code| digits.contains(&code.to_string())),
            );
        }
    }
    cited
}

/// The list of numbers after the word.
fn behaviours(line: &str) -> Vec<u32> {
    let Some((_, list)) = line.split_once(WORD) else {
        return Vec::new();
    };
    let list = list.trim_start_matches('s');
    let words = list
        .split([' ', ',', ':', ';', '.'])
        .filter(|word| !word.is_empty());
    let numbers = words.map_while(|word| match word {
        "and" => Some(None),
        word => word.parse().ok().map(Some),
    });
    numbers.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_numbers_is_read_to_its_end() {
        for (line, want) in [
            (format!("// B{WORD} 7: a target"), vec![7]),
            (
                format!("// B{WORD}s 3, 4 and 13 of dsm-web-api.md section 11."),
                vec![3, 4, 13],
            ),
            (format!("// the b{WORD} of a NAS"), vec![]),
            ("// nothing".to_owned(), vec![]),
        ] {
            assert_eq!(behaviours(&line), want, "{line}");
        }
    }

    #[test]
    fn only_tests_of_dsm_sim_and_e2e_count() {
        let text = format!("// B{WORD} 5\n18_990_531\n");
        for (path, found) in [
            ("dsm-sim/tests/a.rs", vec![5, 18_990_531]),
            ("dsm-sim/src/lun/tests.rs", vec![5, 18_990_531]),
            ("e2e/src/bin/vm/stories/a.rs", vec![5]),
            ("dsm-sim/src/lun.rs", vec![]),
            ("driver/tests/a.rs", vec![]),
            ("dsm-sim/tests/a.md", vec![]),
        ] {
            let cited: Vec<u32> = cited(&[File::new(path, &text)]).into_iter().collect();
            assert_eq!(cited, found, "{path}");
        }
    }

    #[test]
    fn a_behaviour_that_is_neither_tested_nor_listed_is_a_breach() {
        let all = |except: u32| {
            let known = BEHAVIOURS.chain(CODES);
            let cited = known.filter(|number| {
                ![except, NO_BEHAVIOUR].contains(number)
                    && NOT_SIMULATED.iter().all(|row| row.0 != *number)
            });
            let line = |number: u32| format!("// B{WORD} {number}\n// {number}\n");
            File::new("dsm-sim/tests/a.rs", &cited.map(line).collect::<String>())
        };
        assert_eq!(coverage(&[all(0)]).breaches, Vec::<String>::new());
        assert!(coverage(&[all(12)]).breaches[0].starts_with("no test cites behaviour 12"));
        assert!(
            coverage(&[all(18_990_004)]).breaches[0].starts_with("no test cites code 18990004")
        );
        let too_much = File::new("dsm-sim/tests/b.rs", "18_990_724");
        assert!(coverage(&[all(0), too_much]).breaches[0].contains("is listed as not simulated"));
    }
}
