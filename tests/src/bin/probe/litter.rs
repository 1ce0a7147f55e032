//! What the probe leaves for whoever has to count, fetch or remove it: more than a program would, and what names, depth
//! and attributes can do.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;

use serde_json::json;

use crate::{say, sys};

fn failed(what: &str) -> impl FnOnce(io::Error) -> String {
    move |e| format!("{what}: {e}")
}

/// A name of `length` bytes that ends with a number.
fn long(length: usize, n: u64) -> String {
    format!("{n:0>length$}")
}

pub fn sparse(path: &str, size: u64) -> Result<i32, String> {
    File::create(path).and_then(|file| file.set_len(size)).map_err(failed(path))?;
    Ok(0)
}

/// So many FIFOs with long names.
pub fn fifos(dir: &str, count: u64) -> Result<i32, String> {
    fs::create_dir(dir).map_err(failed(dir))?;
    (0..count).try_for_each(|n| sys::make_fifo(&format!("{dir}/{}", long(250, n)))).map_err(failed(dir))?;
    Ok(0)
}

/// So many directories.
pub fn directories(dir: &str, count: u64) -> Result<i32, String> {
    fs::create_dir(dir).map_err(failed(dir))?;
    (0..count).try_for_each(|n| fs::create_dir(format!("{dir}/{n}"))).map_err(failed(dir))?;
    Ok(0)
}

/// So many names of 255 bytes, for as few files as the file system lets have so many.
pub fn links(dir: &str, count: u64) -> Result<i32, String> {
    fs::create_dir(dir).map_err(failed(dir))?;
    std::env::set_current_dir(dir).map_err(failed(dir))?;
    let mut file = String::new();
    for n in 0..count {
        if n % 60_000 == 0 {
            file = format!("file-{n}");
            File::create(&file).map_err(failed(&file))?;
        }
        fs::hard_link(&file, long(255, n)).map_err(failed(dir))?;
    }
    Ok(0)
}

/// A file of so many mebibytes where a count by names, by paths or by a list of what is still to do would not find it.
pub fn hide(how: &str, mib: u64) -> Result<i32, String> {
    match how {
        "name" => enter(OsStr::from_bytes(b"\xff"))?,
        "depth" => (0..20).try_for_each(|_| enter(OsStr::new(&long(250, 0))))?,
        "levels" => (0..3_000).try_for_each(|_| enter(OsStr::new("d")))?,
        _ => return Err("hide name, depth or levels".into()),
    }
    let mut file = File::create("hidden").map_err(failed("hidden"))?;
    let block = vec![7; 1 << 20];
    (0..mib).try_for_each(|_| file.write_all(&block)).map_err(failed("hidden"))?;
    Ok(0)
}

fn enter(name: &OsStr) -> Result<(), String> {
    let path = std::path::Path::new(name);
    fs::create_dir(path).and_then(|()| std::env::set_current_dir(path)).map_err(failed("a directory"))
}

/// Puts on a directory what an owner can put there: an attribute, a list that closes whatever is made in it, flags.
pub fn mark(dir: &str) -> Result<i32, String> {
    let open = File::open(dir).map_err(failed(dir))?;
    // Version 2; nothing for the owner, the group and the others.
    let entry = |tag: u16| [tag.to_ne_bytes(), [0, 0], [255; 2], [255; 2]].concat();
    let list = [2u32.to_ne_bytes().to_vec(), entry(1), entry(4), entry(0x20)].concat();
    let marks: [(&str, io::Result<()>); 3] = [
        ("user.left", sys::set_attribute(&open, c"user.left", b"behind")),
        ("system.posix_acl_default", sys::set_attribute(&open, c"system.posix_acl_default", &list)),
        ("flags", sys::inode_flags(&open).and_then(|flags| sys::set_inode_flags(&open, flags | sys::MARK_FLAGS))),
    ];
    for (mark, result) in marks {
        say(&json!({"mark": mark, "ok": result.is_ok(), "error": result.err().map(|e| e.to_string())}));
    }
    Ok(0)
}

/// What is on a directory.
pub fn marks(dir: &str) -> Result<i32, String> {
    let open = File::open(dir).map_err(failed(dir))?;
    let bytes = sys::attribute_names(&open).map_err(failed(dir))?;
    let names: Vec<String> = bytes
        .split_inclusive(|b| *b == 0)
        .filter_map(|name| Some(CStr::from_bytes_with_nul(name).ok()?.to_string_lossy().into_owned()))
        .collect();
    let flags = sys::inode_flags(&open).map(|flags| flags & sys::MARK_FLAGS).unwrap_or(0);
    say(&json!({"attributes": names, "flags": flags}));
    Ok(0)
}

/// Adds files and directories to a directory of somebody else's for as long as it can, from wherever it has been
/// opened.
pub fn refill(dir: &str, time: std::time::Duration) -> Result<i32, String> {
    let end = std::time::Instant::now() + time;
    let (mut made, mut n) = (0u64, 0u64);
    while std::time::Instant::now() < end {
        if std::env::set_current_dir(dir).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
            continue;
        }
        // Goes on where it is for as long as that directory takes anything, whatever its name leads to by now.
        while std::time::Instant::now() < end {
            n += 1;
            let file = File::create(format!("f{n}")).is_ok();
            let dir = fs::DirBuilder::new().mode(0o777).create(format!("d{n}")).is_ok();
            if !file && !dir {
                break;
            }
            made += u64::from(file) + u64::from(dir);
        }
    }
    say(&json!({"made": made}));
    Ok(0)
}
