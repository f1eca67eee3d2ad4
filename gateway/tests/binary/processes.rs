//! What tests ask the system about processes: that its answers are true.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{self, MemoryWatch, children, is_alive, open_descriptors};

/// Runs a program until its standard input ends, once it has written a line.
fn python(program: &str) -> std::process::Child {
    let mut command = Command::new(support::python());
    command.args(["-I", "-c", &format!("import sys\n{program}\nprint(flush=True)\nsys.stdin.read()")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    child
}

#[test]
fn a_process_is_a_child_of_its_parent_and_dead_before_it_is_waited_for() {
    let mut child = python("import subprocess; kept = subprocess.Popen(['sleep', '60'])");
    let grandchildren = children(child.id());
    assert!(children(std::process::id()).contains(&child.id()) && is_alive(child.id()));
    assert!(grandchildren.len() == 1 && is_alive(grandchildren[0]), "{grandchildren:?}");
    for pid in [grandchildren[0], child.id()] {
        support::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let killed = Instant::now();
        while is_alive(pid) {
            assert!(killed.elapsed() < Duration::from_secs(5), "a zombie counts as alive");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    child.wait().unwrap();
    assert!(!is_alive(child.id()) && children(child.id()).is_empty());
}

#[test]
fn every_open_descriptor_is_counted() {
    let (mut few, mut many) = (python(""), python("kept = [open('/dev/null') for _ in range(50)]"));
    assert_eq!(open_descriptors(many.id()), open_descriptors(few.id()) + 50);
    for child in [&mut few, &mut many] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

#[test]
fn memory_that_a_process_had_for_a_moment_is_seen() {
    let had = "kept = b'x' * (64 << 20)\ntime.sleep(0.1)\ndel kept";
    let mut child = python(&format!("import time\nprint(flush=True)\nsys.stdin.readline()\n{had}"));
    let memory = MemoryWatch::start(child.id());
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"\n").unwrap();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    let growth = memory.growth();
    assert!((60 << 20..90 << 20).contains(&growth), "{growth} bytes");
    drop(input);
    child.wait().unwrap();
}
