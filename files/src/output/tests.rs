use std::os::unix::fs::symlink;

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn write(target: &Path, text: &str) {
    let mut output = Output::create(target).unwrap();
    output.write_all(text.as_bytes()).unwrap();
    output.finish().unwrap();
}

#[test]
fn a_target_is_the_old_one_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    write(&target, "one");
    let mut output = Output::create(&target).unwrap();
    output.write_all(b"two").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"one");
    drop(output);
    assert_eq!((fs::read(&target).unwrap(), names(folder.path())), (b"one".into(), vec!["x".into()]));
    write(&target, "three");
    assert_eq!((fs::read(&target).unwrap(), names(folder.path())), (b"three".into(), vec!["x".into()]));
}

#[test]
fn two_at_once_keep_apart() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let mut both = [0, 1].map(|_| Output::create(&target).unwrap());
    assert_eq!(names(folder.path()).len(), 2, "neither is taken for a leftover");
    for (output, text) in both.iter_mut().zip(["one", "other"]) {
        output.write_all(text.as_bytes()).unwrap();
    }
    for (output, text) in both.into_iter().zip(["one", "other"]) {
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), text);
    }
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn leftovers_are_removed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let kept = [".elapid-x", ".elapid-folder.part", ".elapid-link.part", "x.part", "other"];
    for name in kept {
        let path = folder.path().join(name);
        match name {
            ".elapid-folder.part" => fs::create_dir(path).unwrap(),
            ".elapid-link.part" => symlink("other", path).unwrap(),
            _ => fs::write(path, name).unwrap(),
        }
    }
    fs::write(folder.path().join(".elapid-abcdefghijkl.part"), "of a program that was killed").unwrap();
    write(&folder.path().join("new"), "text");
    let mut expected: Vec<_> = kept.into_iter().chain(["new"]).collect();
    expected.sort();
    assert_eq!(names(folder.path()), expected);
    assert_eq!(fs::read_to_string(folder.path().join("other")).unwrap(), "other");
}

#[test]
fn an_existing_targets_permissions_stay_and_new_ones_follow_the_mask() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let (made, target) = (folder.path().join("made"), folder.path().join("x"));
    fs::write(&made, "by the standard library").unwrap();
    write(&target, "one");
    assert_eq!(mode(&target), mode(&made));
    for other in [0o600, 0o640, 0o755] {
        fs::set_permissions(&target, Permissions::from_mode(other)).unwrap();
        write(&target, "two");
        assert_eq!(mode(&target), other);
    }
    fs::set_permissions(&target, Permissions::from_mode(0o444)).unwrap();
    let error = Output::create(&target).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(fs::read(&target).unwrap(), b"two");
    assert_eq!(names(folder.path()), ["made", "x"]);
}

#[test]
fn links_stay_and_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("disk")).unwrap();
    symlink("disk", path("folder")).unwrap();
    symlink("folder/../first", path("second")).unwrap();
    symlink("disk/x", path("first")).unwrap();
    // There is no `x` the first time.
    for text in ["one", "two"] {
        write(&path("second"), text);
        assert_eq!(fs::read_to_string(path("disk/x")).unwrap(), text);
        assert_eq!(names(folder.path()), ["disk", "first", "folder", "second"]);
        assert_eq!(names(&path("disk")), ["x"]);
        assert!(path("first").is_symlink() && path("second").is_symlink());
    }
    symlink("loop", path("loop")).unwrap();
    assert!(Output::create(&path("loop")).is_err());
}

#[test]
fn what_is_no_file_is_written_to_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let null = folder.path().join("null");
    symlink("/dev/null", &null).unwrap();
    write(&null, "text");
    assert!(null.is_symlink() && fs::metadata("/dev/null").is_ok_and(|null| !null.is_file()));
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| fs::read(&fifo).unwrap());
        write(&fifo, "text");
        assert_eq!(read.join().unwrap(), b"text");
    });
    assert_eq!(names(folder.path()), ["fifo", "null"]);
    for target in [folder.path(), &folder.path().join("new/")] {
        assert_eq!(Output::create(target).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }
}

#[test]
fn the_same_file_has_many_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("x"), "").unwrap();
    fs::write(path("y"), "").unwrap();
    symlink("x", path("link")).unwrap();
    fs::hard_link(path("x"), path("hard")).unwrap();
    assert!(same_file(&path("x"), &path("link")) && same_file(&path("hard"), &path("link")));
    assert!(!same_file(&path("x"), &path("y")) && !same_file(&path("x"), &path("none")));
    assert!(!same_file(&path("none"), &path("none")));
}
