//! `--static`: files beside an application.

use super::{refused, shop};
use crate::support::needs;

#[test]
fn static_files_come_first_and_hashed_names_stay_in_caches() {
    if !needs("python3") {
        return;
    }
    let setup = shop()
        .file("assets/app.27e20196a850.js", "hashed")
        .file("assets/app.js", "plain")
        .file("assets/sub/x.css", "sub");
    let assets = setup.root().join("assets");
    let server = setup
        .args(["--static", &format!("/static/={}", assets.display())])
        .arg("--workers=1")
        .start();
    let hashed = server.get("/static/app.27e20196a850.js");
    assert_eq!(hashed.text(), "hashed");
    let forever = Some("public, max-age=31536000, immutable");
    assert_eq!(hashed.header("Cache-Control").as_deref(), forever);
    let tag = hashed.header("ETag").expect("files have one");
    let again = server.request(
        "GET",
        "/static/app.27e20196a850.js",
        &[("If-None-Match", &tag)],
        b"",
    );
    assert_eq!(
        (again.status, again.header("Cache-Control").as_deref()),
        (304, forever)
    );
    let plain = server.get("/static/app.js?v=1");
    assert_eq!(
        (&plain.text()[..], plain.header("Cache-Control").as_deref()),
        ("plain", Some("no-cache"))
    );
    assert_eq!(server.get("/static/sub/x.css").text(), "sub");
    for missing in [
        "/static/",
        "/static",
        "/static/sub",
        "/static/sub/",
        "/static/none",
        "/static/..%2fshop.py",
    ] {
        assert_eq!(server.get(missing).status, 404, "{missing}");
    }
    assert!(server.get("/other").text().contains("|/other "));
}

#[test]
fn a_static_folder_that_is_none_is_explained() {
    for (value, part) in [
        ("/static/", "can't be understood"),
        ("static=/tmp", "can't be understood"),
        ("/static=/tmp", "can't be understood"),
        ("/=/tmp", "can't be understood"),
        ("/static/=/no/such/folder", "no such folder"),
    ] {
        let output = refused(&["--static", value]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains(part) && error.contains("hint: "),
            "{value}: {error}"
        );
    }
}
