use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use zeroize::Zeroize;

use super::*;

/// How often the key, whose bytes are given inverted so that the search does not find itself, is in this process's
/// memory: as bytes, and as the text that a startup file has.
fn copies(inverted: &[u8], inverted_text: &[u8]) -> [usize; 2] {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let mut found = [0; 2];
    let mut area = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(end));
        area.resize(usize::try_from(end - start).unwrap(), 0);
        memory.seek(SeekFrom::Start(start)).unwrap();
        // What was read is inverted in the same place, so that it is not a copy for an area that follows. An area that
        // has gone meanwhile has no copy.
        if memory.read_exact(&mut area).is_ok() {
            area.iter_mut().for_each(|byte| *byte = !*byte);
            for (n, needle) in [inverted, inverted_text].into_iter().enumerate() {
                found[n] += area.windows(needle.len()).filter(|part| *part == needle).count();
            }
        }
        area.fill(0);
    }
    found
}

#[inline(never)]
fn moved(order: Order, key: Key) -> Box<(Order, Key)> {
    let both = std::hint::black_box((order, key));
    Box::new(both)
}

#[test]
fn a_key_that_was_wiped_has_left_no_copy_in_memory() {
    let mut random = [0; 32];
    latebind_linux::sys::random(&mut random).unwrap();
    let mut text = latebind_contract::encoding::base64url(&random).into_bytes();
    let invert = |bytes: &[u8]| bytes.iter().map(|byte| !*byte).collect::<Vec<u8>>();
    let (inverted, inverted_text) = (invert(&random), invert(&text));
    let mut file = br#"{"version":2,"job":"j","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","incarnation":"i","uid":1,"gid":2,"key":""#
        .to_vec();
    file.reserve_exact(100);
    file.extend_from_slice(&text);
    file.extend_from_slice(b"\"}\n{\"argv\":[\"a\"]}");
    random.zeroize();
    text.zeroize();

    // The first look at a file that is still there shows that the search finds what there is to be found.
    assert!(copies(&inverted, &inverted_text)[1] > 0, "the file's own text was not found");
    let (order, command, key) = separate(&file).unwrap();
    file.zeroize();
    assert_eq!(command, br#"{"argv":["a"]}"#);
    let mut both = moved(order, key);
    assert!(copies(&inverted, &inverted_text)[0] > 0, "the key itself was not found");
    both.1.wipe();
    assert_eq!(copies(&inverted, &inverted_text), [0, 0], "copies of the key, and of its text");
}
