#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use super::*;

#[test]
fn what_is_sent_is_understood() {
    for (n, what) in (0..).zip(What::ALL.iter().copied()) {
        assert_eq!(what as u8, n, "the table is in the order of the numbers");
        let report = Report { what, errno: 2, numbers: [1, 2, 3, 4, u32::MAX] };
        let bytes = report.bytes();
        assert_eq!((bytes.as_flattened().len(), Report::parse(bytes.as_flattened())), (SIZE, Some(report)));
    }
}

#[test]
fn nothing_but_one_whole_report_is_understood() {
    let bytes: [u8; SIZE] = Report::child(7, 0).bytes().as_flattened().try_into().unwrap();
    for length in 0..SIZE {
        assert_eq!(Report::parse(&bytes[..length]), None, "{length} bytes");
    }
    assert_eq!(Report::parse(&[&bytes[..], b"\0"].concat()), None);
    assert_eq!(Report::parse(&bytes.repeat(2)), None);
    for (at, byte) in [(0, What::ALL.len() as u8), (0, 0xff), (1, 1), (7, 0xff), (5, 0x10)] {
        let mut changed = bytes;
        changed[at] = byte;
        assert_eq!(Report::parse(&changed), None, "byte {at} is {byte:#x}");
    }
}

#[test]
fn what_is_reported_of_a_failure_is_numbers_alone() {
    let eio = io::Error::from_raw_os_error(5);
    for what in What::ALL.iter().copied() {
        let failure = Report::at(what, 3, &eio).failure();
        assert_eq!(failure.is_none(), what == What::Child);
        let Some(failure) = failure else { continue };
        assert_eq!((failure.errno, failure.message.as_str()), (5, ""));
        assert_eq!(failure.reported, Some((what as u8, [3, 0, 0, 0, 0])));
    }
}
