//! What the control groups of Linux say of this process: its memory limit, and how often the kernel killed for it.
//! Where there are none, nothing.
//!
//! Both versions may be mounted at once. A process is in one group of each hierarchy; the limits of the groups
//! above it hold, too, as far up as the mount shows them. See cgroups(7) and proc_pid_mountinfo(5).

use std::fs::read_to_string;
use std::path::{Component, Path, PathBuf};

/// Smallest memory limit of this process's groups, in bytes. `root` is `/`, except in tests.
pub(super) fn memory_limit(root: &Path) -> Option<u64> {
    let limits = groups(root).into_iter().flat_map(|group| {
        let files: &[&str] = match group.version {
            Version::One => &["memory.limit_in_bytes"],
            // Above `high` a process is not killed, but hardly makes progress.
            Version::Two => &["memory.max", "memory.high"],
        };
        let limits =
            files.iter().map(|name| read_to_string(group.folder.join(name)).ok()?.trim().parse().ok());
        limits.collect::<Vec<Option<u64>>>()
    });
    limits.flatten().min()
}

/// Processes in this one's group that the kernel has killed because memory was short.
pub(super) fn oom_kills(root: &Path) -> Option<u64> {
    groups(root).into_iter().find_map(|group| {
        let name = match group.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = read_to_string(group.folder.join(name)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group that accounts for memory.
struct Group {
    version: Version,
    folder: PathBuf,
}

/// The groups of this process in each hierarchy, from its own one upwards.
fn groups(root: &Path) -> Vec<Group> {
    let read = |file: &str| read_to_string(root.join(file)).unwrap_or_default();
    let (memberships, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut groups = Vec::new();
    for (version, mount_root, mount_point) in mounts.lines().filter_map(memory_mount) {
        let Some(path) = memberships.lines().find_map(|line| membership(line, version)) else { continue };
        let mount = root.join(mount_point.strip_prefix("/").unwrap_or(&mount_point));
        // In a container, a path that the mount does not show is that of the mount itself.
        let below = Path::new(path).strip_prefix(&mount_root).unwrap_or(Path::new(""));
        let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        let own = if is_plain { mount.join(below) } else { mount.clone() };
        let folders = own.ancestors().take_while(|folder| folder.starts_with(&mount));
        groups.extend(folders.map(|folder| Group { version, folder: folder.to_owned() }));
    }
    groups
}

/// The group that a line of `/proc/self/cgroup` names, if it accounts for memory in this version.
fn membership(line: &str, version: Version) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (_hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let is_wanted = match version {
        Version::One => controllers.split(',').any(|controller| controller == "memory"),
        Version::Two => controllers.is_empty(),
    };
    is_wanted.then_some(path)
}

/// The version, the root and the mount point of a line of `/proc/self/mountinfo`, if groups there account for
/// memory.
fn memory_mount(line: &str) -> Option<(Version, PathBuf, PathBuf)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
    let mut file_system = file_system.split(' ');
    let version = match (file_system.next()?, file_system.nth(1)) {
        ("cgroup2", _) => Version::Two,
        ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => Version::One,
        _ => return None,
    };
    Some((version, root, point))
}

/// A path of `/proc/self/mountinfo`, in which some characters are written in octal.
fn unescape(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escaped, character);
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system with these files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        root
    }

    const MOUNT_2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const MOUNT_1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";

    #[test]
    fn without_control_groups_there_is_no_limit_and_no_count() {
        for files in [&[][..], &[("proc/self/cgroup", "0::/a\n")], &[("proc/self/mountinfo", MOUNT_2)]] {
            let root = tree(files);
            assert_eq!((memory_limit(root.path()), oom_kills(root.path())), (None, None));
        }
    }

    #[test]
    fn the_smallest_limit_of_a_nested_group_and_those_above_it_holds() {
        let files = [
            ("proc/self/cgroup", "0::/kubepods/pod 1/main\n"),
            ("proc/self/mountinfo", MOUNT_2),
            ("sys/fs/cgroup/kubepods/memory.max", "300\n"),
            ("sys/fs/cgroup/kubepods/pod 1/memory.max", "200\n"),
            ("sys/fs/cgroup/kubepods/pod 1/main/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/pod 1/main/memory.high", "max\n"),
            (
                "sys/fs/cgroup/kubepods/pod 1/main/memory.events",
                "low 0\noom 9\noom_kill 7\noom_group_kill 5\n",
            ),
            ("sys/fs/cgroup/other/memory.max", "1\n"),
        ];
        let root = tree(&files);
        assert_eq!((memory_limit(root.path()), oom_kills(root.path())), (Some(200), Some(7)));
        std::fs::write(root.path().join("sys/fs/cgroup/kubepods/pod 1/main/memory.high"), "150\n").unwrap();
        assert_eq!(memory_limit(root.path()), Some(150));
    }

    #[test]
    fn a_container_with_a_namespace_of_its_own_sees_its_group_as_the_root() {
        for path in ["/", "/../sibling", "/not/mounted/here"] {
            let root = tree(&[
                ("proc/self/cgroup", &format!("0::{path}\n")),
                ("proc/self/mountinfo", MOUNT_2),
                ("sys/fs/cgroup/memory.max", "209715200\n"),
                ("sys/fs/cgroup/memory.events", "oom_kill 2\n"),
            ]);
            let seen = (memory_limit(root.path()), oom_kills(root.path()));
            let is_there = path != "/not/mounted/here";
            assert_eq!(seen.0, Some(209_715_200), "{path}");
            assert!(!is_there || seen.1 == Some(2), "{path}");
        }
    }

    #[test]
    fn version_one_has_files_of_its_own_and_its_mount_may_show_a_part_of_the_tree() {
        let root = tree(&[
            ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc/inner\n0::/\n"),
            (
                "proc/self/mountinfo",
                "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,cpu,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "500\n"),
            ("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "sys/fs/cgroup/memory/inner/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            ),
            ("sys/fs/cgroup/unified/cgroup.procs", "1\n"),
        ]);
        assert_eq!((memory_limit(root.path()), oom_kills(root.path())), (Some(500), Some(3)));
    }

    #[test]
    fn a_group_that_does_not_account_for_memory_is_counted_in_the_one_above_it() {
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/\n0::/user.slice/scope\n"),
            ("proc/self/mountinfo", &format!("{MOUNT_1}{MOUNT_2}")),
            ("sys/fs/cgroup/user.slice/memory.events", "oom_kill 4\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "100\n"),
        ]);
        assert_eq!((memory_limit(root.path()), oom_kills(root.path())), (Some(100), Some(4)));
    }
}
