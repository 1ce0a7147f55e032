//! The filter of system calls that a job runs under (seccomp(2)): one table of numbers, made by the compiler.
//!
//! What is refused has no business in a batch job: it makes state in the kernel that outlives the job and belongs to a
//! UID, loads code into the kernel or looks into it, changes what file systems and namespaces there are, or administers
//! the machine. The rest is allowed: this is not a sandbox for a program, and a job's debugger and its threads have to
//! work. `docs/threat-model.md` gives the reason for each group, and says what the engines' own filters refuse.
#![forbid(unsafe_code)]

use nix::libc::{self, c_long};

/// A system call by its name and its number on this architecture.
pub type Call = (&'static str, c_long);

#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = libc::SYS_kexec_file_load;
/// The libc crate lacks it here: asm-generic/unistd.h.
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: c_long = 294;

/// Refused with EPERM, as the kernel refuses what needs a privilege. Numbers from 424 on are the same on all
/// architectures.
pub const REFUSED: [Call; 38] = [
    // Keys and keyrings belong to a UID, outlive its processes, and are read by the next one that has it.
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
    ("keyctl", libc::SYS_keyctl),
    // Code in the kernel, and looks into it.
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("kexec_file_load", KEXEC_FILE_LOAD),
    ("syslog", libc::SYS_syslog),
    // Memory whose reader waits for as long as the job likes, and calls that go past every filter.
    ("userfaultfd", libc::SYS_userfaultfd),
    ("io_uring_setup", 425),
    ("io_uring_enter", 426),
    ("io_uring_register", 427),
    // Files by number instead of by path, and watches over whole file systems.
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("fanotify_init", libc::SYS_fanotify_init),
    // Mounts of its own: what nobody outside sees, or waits for.
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("pivot_root", libc::SYS_pivot_root),
    ("open_tree", 428),
    ("move_mount", 429),
    ("fsopen", 430),
    ("fsconfig", 431),
    ("fsmount", 432),
    ("fspick", 433),
    ("mount_setattr", 442),
    ("open_tree_attr", 467),
    // Namespaces; making them by clone and unshare is below.
    ("setns", libc::SYS_setns),
    // Administration of the machine.
    ("acct", libc::SYS_acct),
    ("reboot", libc::SYS_reboot),
    ("swapon", libc::SYS_swapon),
    ("swapoff", libc::SYS_swapoff),
    ("settimeofday", libc::SYS_settimeofday),
    ("clock_settime", libc::SYS_clock_settime),
    ("quotactl", libc::SYS_quotactl),
    ("quotactl_fd", 443),
    ("vhangup", libc::SYS_vhangup),
];

/// Ports of the machine, where the architecture has them.
#[cfg(target_arch = "x86_64")]
pub const REFUSED_HERE: &[Call] = &[("iopl", libc::SYS_iopl), ("ioperm", libc::SYS_ioperm)];
/// Nothing more.
#[cfg(not(target_arch = "x86_64"))]
pub const REFUSED_HERE: &[Call] = &[];

/// Flags of clone(2) and unshare(2) that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
pub const NAMESPACES: u32 = 0x7e02_0000;
/// One more, which in clone(2) is a part of the signal's number.
const NEW_TIME: u32 = 0x80;
/// `clone3(2)` hides its flags from a filter. Programs that find no such call use clone(2).
const CLONE3: c_long = 435;

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_AARCH64` of `linux/audit.h`.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Numbers from here on are those of x32, a second way to all calls of x86_64.
#[cfg(target_arch = "x86_64")]
const FOREIGN_FROM: u32 = 0x4000_0000;
/// There is no second way: no call has such a number.
#[cfg(not(target_arch = "x86_64"))]
const FOREIGN_FROM: u32 = 0x7fff_ffff;

/// Where struct seccomp_data has the number, the architecture, and the lower half of the first argument
/// (little-endian).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// One instruction of the filter.
pub type Instruction = libc::sock_filter;

const fn instruction(code: u32, k: u32, jt: usize, jf: usize) -> Instruction {
    assert!(jt < 256 && jf < 256, "a jump is at most 255 instructions long");
    Instruction { code: code as u16, jt: jt as u8, jf: jf as u8, k }
}

const fn load(offset: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

const fn answer(with: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, with, 0, 0)
}

/// Where `at` jumps to `target` if the test holds, and to `other` if not.
const fn test(how: u32, value: u32, at: usize, target: usize, other: usize) -> Instruction {
    instruction(libc::BPF_JMP | how | libc::BPF_K, value, target - at - 1, other - at - 1)
}

const SIMPLE: usize = REFUSED.len() + REFUSED_HERE.len();

// The parts of the filter, by the number of their first instruction.
const CALLS: usize = 4;
const OTHERS: usize = CALLS + SIMPLE;
const CLONE: usize = OTHERS + 4;
const UNSHARE: usize = CLONE + 2;
const ALLOW: usize = UNSHARE + 2;
const REFUSE: usize = ALLOW + 1;
const MISSING: usize = REFUSE + 1;
const KILL: usize = MISSING + 1;

/// The filter.
pub static FILTER: [Instruction; KILL + 1] = build();

const fn build() -> [Instruction; KILL + 1] {
    let (equal, at_least, any_of) = (libc::BPF_JEQ, libc::BPF_JGE, libc::BPF_JSET);
    let mut all = [answer(libc::SECCOMP_RET_KILL_PROCESS); KILL + 1];
    // Another architecture has other numbers. Its programs would not come far with errors, so they end at once.
    all[0] = load(ARCH);
    all[1] = test(equal, ARCHITECTURE, 1, 2, KILL);
    all[2] = load(NUMBER);
    all[3] = test(at_least, FOREIGN_FROM, 3, REFUSE, CALLS);
    let mut n = 0;
    while n < SIMPLE {
        let (_, call) = if n < REFUSED.len() { REFUSED[n] } else { REFUSED_HERE[n - REFUSED.len()] };
        all[CALLS + n] = test(equal, call as u32, CALLS + n, REFUSE, CALLS + n + 1);
        n += 1;
    }
    all[OTHERS] = test(equal, CLONE3 as u32, OTHERS, MISSING, OTHERS + 1);
    all[OTHERS + 1] = test(equal, libc::SYS_clone as u32, OTHERS + 1, CLONE, OTHERS + 2);
    all[OTHERS + 2] = test(equal, libc::SYS_unshare as u32, OTHERS + 2, UNSHARE, OTHERS + 3);
    all[OTHERS + 3] = answer(libc::SECCOMP_RET_ALLOW);
    all[CLONE] = load(FIRST_ARGUMENT);
    all[CLONE + 1] = test(any_of, NAMESPACES, CLONE + 1, REFUSE, ALLOW);
    all[UNSHARE] = load(FIRST_ARGUMENT);
    all[UNSHARE + 1] = test(any_of, NAMESPACES | NEW_TIME, UNSHARE + 1, REFUSE, ALLOW);
    all[ALLOW] = answer(libc::SECCOMP_RET_ALLOW);
    all[REFUSE] = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    all[MISSING] = answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: the few instructions that the filter has, run on a call.
    fn run(arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = FILTER[at];
            let holds = match u32::from(code) {
                c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    value = match k {
                        NUMBER => number,
                        ARCH => arch,
                        FIRST_ARGUMENT => argument,
                        other => panic!("reads at {other}"),
                    };
                    at += 1;
                    continue;
                }
                c if c == libc::BPF_RET | libc::BPF_K => return k,
                c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => value == k,
                c if c == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => value >= k,
                c if c == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => value & k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += 1 + usize::from(if holds { jt } else { jf });
        }
    }

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const PERMISSION: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

    #[test]
    fn exactly_the_calls_of_the_table_are_refused() {
        let refused: Vec<u32> = REFUSED.iter().chain(REFUSED_HERE).map(|(_, call)| *call as u32).collect();
        for number in 0..2000 {
            let wanted = match number {
                n if refused.contains(&n) => PERMISSION,
                n if n == CLONE3 as u32 => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
                _ => ALLOWED,
            };
            assert_eq!(run(ARCHITECTURE, number, 0), wanted, "call {number}");
        }
        assert_eq!(
            refused.iter().collect::<std::collections::BTreeSet<_>>().len(),
            refused.len(),
            "a call is named twice"
        );
    }

    #[test]
    fn namespaces_are_refused_and_threads_are_not() {
        let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        for (call, flags, wanted) in [
            (libc::SYS_clone, thread, ALLOWED),
            (libc::SYS_clone, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, ALLOWED),
            (libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, PERMISSION),
            (libc::SYS_clone, libc::CLONE_NEWNET, PERMISSION),
            (libc::SYS_unshare, libc::CLONE_FILES | libc::CLONE_FS, ALLOWED),
            (libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNS, PERMISSION),
            (libc::SYS_unshare, 0x80, PERMISSION),
        ] {
            assert_eq!(run(ARCHITECTURE, call as u32, flags as u32), wanted, "{call} {flags:#x}");
        }
        let each = [
            libc::CLONE_NEWNS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ];
        assert_eq!(each.iter().fold(0, |all, flag| all | *flag as u32), NAMESPACES);
    }

    #[test]
    fn no_other_way_leads_to_a_call() {
        // i386, arm, and an architecture that there is not.
        for arch in [0x4000_0003, 0x4000_0028, 0, ARCHITECTURE ^ 1] {
            for number in [0, 1, 20, 288, libc::SYS_keyctl as u32] {
                assert_eq!(run(arch, number, 0), libc::SECCOMP_RET_KILL_PROCESS, "{arch:#x} {number}");
            }
        }
        // x32 and numbers below zero.
        #[cfg(target_arch = "x86_64")]
        for number in [0x4000_0000, 0x4000_0000 | 39, 0x4000_0000 | libc::SYS_keyctl as u32, u32::MAX] {
            assert_eq!(run(ARCHITECTURE, number, 0), PERMISSION, "{number:#x}");
        }
    }

    #[test]
    fn numbers_that_are_written_here_are_those_of_the_c_library() {
        for (name, known) in [
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("io_uring_enter", libc::SYS_io_uring_enter),
            ("io_uring_register", libc::SYS_io_uring_register),
            ("open_tree", libc::SYS_open_tree),
            ("move_mount", libc::SYS_move_mount),
            ("fsopen", libc::SYS_fsopen),
            ("fsconfig", libc::SYS_fsconfig),
            ("fsmount", libc::SYS_fsmount),
            ("fspick", libc::SYS_fspick),
            ("mount_setattr", libc::SYS_mount_setattr),
        ] {
            assert!(REFUSED.contains(&(name, known)), "{name} is {known}");
        }
        assert_eq!(CLONE3, libc::SYS_clone3);
    }
}
