//! Whether a file can be changed by others than those whom the gateway trusts. A leaf.
//!
//! Programs and libraries are only taken from places that nobody but this user, root and the owner of the gateway's own
//! binary can write to. A group may: Homebrew's folders and `/usr/local` belong to one.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Links that are followed on the way to one file, as many as Linux follows.
const MOST_LINKS: usize = 40;
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Who is trusted.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    owners: Vec<u32>,
}

/// Whose files are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Those of this user, of root, and of the owner of the gateway's binary.
    Trusted,
    /// Anybody's: a person has named the file, and vouches for its owner.
    Any,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Distrust {
    #[error("`{}` is writable by every user: run `chmod o-w` on it, or install elsewhere", .0.display())]
    WritableByAll(PathBuf),
    #[error("`{}` belongs to user {owner}, who is neither this user, root, nor the owner of the gateway", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("`{}` cannot be inspected: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("`{}` is not an absolute path", .0.display())]
    Relative(PathBuf),
}

impl Trust {
    /// Trusts the user of this process, root, and whoever owns `binary`, the gateway's own.
    pub(crate) fn new(binary: Option<&Path>) -> Self {
        let owner = binary.and_then(|binary| std::fs::metadata(binary).ok()).map(|facts| facts.uid());
        let user = nix::unistd::geteuid().as_raw();
        Self { owners: [Some(user), Some(0), owner].into_iter().flatten().collect() }
    }

    /// Walks to a file as the system does, through all links, and judges every folder, link and file on the way.
    pub(crate) fn check(&self, path: &Path, owners: Owners) -> Result<(), Distrust> {
        if !path.is_absolute() {
            return Err(Distrust::Relative(path.to_owned()));
        }
        let mut at = PathBuf::new();
        let mut ahead = steps(path);
        let mut links = 0;
        while let Some(step) = ahead.pop_front() {
            if step == ".." {
                at.pop(); // `at` holds no link
                continue;
            }
            let next = at.join(&step); // the root replaces what is there
            let unreadable = |source| Distrust::Unreadable { path: next.clone(), source };
            let facts = std::fs::symlink_metadata(&next).map_err(unreadable)?;
            if owners == Owners::Trusted && !self.owners.contains(&facts.uid()) {
                return Err(Distrust::Foreign { path: next, owner: facts.uid() });
            }
            if facts.is_symlink() {
                links += 1;
                if links > MOST_LINKS {
                    return Err(unreadable(nix::errno::Errno::ELOOP.into()));
                }
                let mut target = steps(&std::fs::read_link(&next).map_err(unreadable)?);
                target.append(&mut ahead);
                ahead = target;
                continue;
            }
            // In a sticky folder nobody can replace what belongs to another.
            let is_sticky = facts.is_dir() && facts.mode() & STICKY != 0 && !ahead.is_empty();
            if facts.mode() & WRITABLE_BY_ALL != 0 && !is_sticky {
                return Err(Distrust::WritableByAll(next));
            }
            at = next;
        }
        Ok(())
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let wanted = path.components().filter(|component| *component != Component::CurDir);
    wanted.map(|component| component.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(folders: &[(&str, u32)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (folder, mode) in folders {
                fs::create_dir_all(tree.at(folder)).unwrap();
                fs::write(tree.at(folder).join("program"), "").unwrap();
                fs::set_permissions(tree.at(folder), Permissions::from_mode(*mode)).unwrap();
            }
            tree
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn why_not(&self, path: &str) -> Option<String> {
            let checked = Trust::new(None).check(&self.at(path), Owners::Trusted);
            checked.err().map(|reason| reason.to_string())
        }
    }

    #[test]
    fn what_only_this_user_or_a_group_can_write_is_trusted() {
        let tree = Tree::new(&[("private", 0o700), ("group", 0o775)]);
        for path in ["private/program", "group/program", "group/../private/program", "private/./program"] {
            assert_eq!(tree.why_not(path), None, "{path}");
        }
        assert!(Trust::new(None).check(Path::new("/usr/bin/env"), Owners::Trusted).is_ok());
    }

    #[test]
    fn what_every_user_can_write_is_not_however_deep_it_lies() {
        let tree = Tree::new(&[("open", 0o777), ("open/inner/innermost", 0o755), ("closed", 0o755)]);
        fs::set_permissions(tree.at("closed/program"), Permissions::from_mode(0o666)).unwrap();
        for (path, part) in [
            ("open/program", "/open`"),
            ("open/inner/innermost/program", "/open`"),
            ("closed/program", "/closed/program`"),
        ] {
            let why = tree.why_not(path).unwrap();
            assert!(why.contains(part) && why.contains("every user"), "{why}");
        }
    }

    #[test]
    fn a_sticky_folder_is_accepted_above_a_file_but_not_as_the_place_itself() {
        let tree = Tree::new(&[("sticky", 0o1777), ("sticky/mine", 0o755)]);
        assert_eq!(tree.why_not("sticky/program"), None);
        assert_eq!(tree.why_not("sticky/mine/program"), None);
        assert!(tree.why_not("sticky").unwrap().contains("every user"));
    }

    #[test]
    fn links_are_followed_to_where_they_lead() {
        let tree = Tree::new(&[("open", 0o777), ("closed", 0o755), ("links", 0o755)]);
        symlink(tree.at("open/program"), tree.at("links/to-file")).unwrap();
        symlink("../open", tree.at("links/to-folder")).unwrap();
        symlink("to-file", tree.at("links/to-link")).unwrap();
        symlink("../closed", tree.at("links/to-closed")).unwrap();
        symlink("in-circles", tree.at("links/in-circles")).unwrap();
        for path in ["links/to-file", "links/to-folder/program", "links/to-link"] {
            assert!(tree.why_not(path).is_some_and(|why| why.contains("/open`")), "{path}");
        }
        assert_eq!(tree.why_not("links/to-closed/program"), None);
        // `..` after a link is the parent of where the link leads.
        assert_eq!(tree.why_not("links/to-closed/../closed/program"), None);
        assert!(tree.why_not("links/in-circles").unwrap().contains("cannot be inspected"));
        assert!(tree.why_not("links/nothing").unwrap().contains("cannot be inspected"));
    }

    #[test]
    fn another_users_file_is_taken_only_from_a_person() {
        let tree = Tree::new(&[("mine", 0o755)]);
        let nobody = Trust { owners: vec![0xffff_fff0] };
        let path = tree.at("mine/program");
        let refused = nobody.check(&path, Owners::Trusted).unwrap_err().to_string();
        assert!(refused.contains("belongs to user"), "{refused}");
        assert!(nobody.check(&path, Owners::Any).is_ok());
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(nobody.check(&path, Owners::Any).is_err());
    }

    #[test]
    fn the_owner_of_the_binary_is_trusted() {
        let tree = Tree::new(&[("mine", 0o755)]);
        let uid = fs::metadata(tree.at("mine")).unwrap().uid();
        assert!(Trust::new(Some(&tree.at("mine"))).owners.contains(&uid));
    }

    #[test]
    fn a_relative_path_is_not_looked_at() {
        let refused = Trust::new(None).check(Path::new("bin/python"), Owners::Trusted).unwrap_err();
        assert!(matches!(refused, Distrust::Relative(_)));
    }
}
