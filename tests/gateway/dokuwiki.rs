//! A real PHP application, clicked through in a real browser: `DokuWiki`, as
//! `scripts/test` unpacks it from Debian's packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::peers::php_fpm;
use crate::support::webdriver::{Browser, ENTER};
use crate::support::{Server, Setup, needs, skip};

/// Pages have addresses like `/doku.php/notes`; files are sent by X-Sendfile.
const SETTINGS: &str = "<?php
$conf['savedir'] = './data';
$conf['useacl'] = 1;
$conf['superuser'] = 'ann';
$conf['userewrite'] = 2;
$conf['xsendfile'] = 2;
";
const RIGHTS: &str = "*\t@ALL\t1\n*\t@user\t8\n";
/// `secret`, as `DokuWiki`'s simplest method keeps it.
const USERS: &str = "ann:5ebe2294ecd0e0f08eab7690d2a6ee69:Ann:ann@example.org:admin,user\n";

/// One pixel.
const PICTURE: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0!\xf9\x04\0\0\0\0\0,\0\0\0\0\
    \x01\0\x01\0\0\x02\x02D\x01\0;";

/// The application in a folder of the test's own, where it can write.
fn wiki() -> Option<Setup> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.dokuwiki");
    if !from.join("doku.php").is_file() {
        skip("needs DokuWiki in tests/.dokuwiki");
        return None;
    }
    let setup = Server::new();
    let copied = Command::new("cp")
        .arg("-rT")
        .args([&from, &setup.root()])
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    let sendfile = format!("--cgi-sendfile={}", setup.root().display());
    let setup = setup
        .file("conf/local.php", SETTINGS)
        .file("conf/acl.auth.php", RIGHTS)
        .file("conf/users.auth.php", USERS)
        .file("picture.gif", PICTURE)
        .arg(sendfile);
    Some(setup)
}

/// Logs in, writes a page with a picture, and finds it again.
fn click_through(browser: &Browser, server: &Server) {
    browser.open(&server.url("/"));
    browser.wait_for("document.body.innerText.includes('This topic does not exist yet')");
    browser.click(&browser.find("[href*=\"do=login\"]"));
    browser.fill(&browser.find("#focus__this"), "ann");
    browser.fill(&browser.find("#dw__login input[type=password]"), "secret");
    browser.press(ENTER);
    browser.wait_for("document.querySelector('.user').innerText.includes('Ann')");

    browser.open(&server.url("/doku.php/wiki:notes?do=media&ns=wiki"));
    let file = server.root().join("picture.gif").display().to_string();
    browser.click(&browser.find("[href*=\"tab_files=upload\"]"));
    browser.wait_for("document.querySelector('#mediamanager__uploader input[type=file]')");
    browser.fill(
        &browser.find("#mediamanager__uploader input[type=file]"),
        &file,
    );
    browser.click(&browser.find("#mediamanager__upload_button"));
    browser.wait_for("document.querySelector('.qq-upload-success')");

    browser.open(&server.url("/doku.php/wiki:notes?do=edit"));
    let text = "====== Notes ======\n\nThe zebra's **stripes** are — äöü — black.\n\n\
        {{wiki:picture.gif}}\n";
    browser.fill(&browser.find("#wiki__text"), text);
    browser.click(&browser.find("#edbtn__save"));
    browser.wait_for("document.querySelector('h1#notes').innerText === 'Notes'");
    browser.wait_for("document.querySelector('.page strong').innerText === 'stripes'");
    browser.wait_for("document.body.innerText.includes('— äöü —')");
    browser.wait_for("document.querySelector('.page img.media').naturalWidth === 1");

    // The index is made by a request that the page makes.
    browser.open(&server.url("/doku.php/start"));
    browser.fill(&browser.find("#qsearch__in"), "zebra");
    browser.press(ENTER);
    browser.wait_for("document.querySelector('.search_results a.wikilink1').innerText");
    browser.click(&browser.find(".search_results a.wikilink1"));
    browser.wait_for("document.querySelector('h1#notes')");

    // Two versions and what is between them.
    browser.open(&server.url("/doku.php/wiki:notes?do=edit"));
    browser.fill(&browser.find("#wiki__text"), "And hooves.\n");
    browser.click(&browser.find("#edbtn__save"));
    browser.wait_for("document.querySelector('.page').innerText.includes('And hooves.')");
    browser.open(&server.url("/doku.php/wiki:notes?do=diff"));
    browser.wait_for("document.querySelector('.diff-addedline').innerText.includes('hooves')");
    assert_eq!(browser.complaints(), [""; 0]);
}

fn leaves_its_work(server: &Server) {
    let page = fs::read_to_string(server.root().join("data/pages/wiki/notes.txt"));
    let page = page.expect("the page was saved");
    assert!(page.contains("zebra") && page.contains("hooves"), "{page}");
    let picture = server.get("/lib/exe/fetch.php/wiki:picture.gif");
    assert_eq!((picture.status, &picture.body[..]), (200, PICTURE));
    assert_eq!(picture.header("X-Sendfile"), None);
    let picture = server.request(
        "GET",
        "/lib/exe/fetch.php/wiki:picture.gif",
        &[("Range", "bytes=0-5")],
        b"",
    );
    assert_eq!((picture.status, &picture.body[..]), (206, &b"GIF89a"[..]));
    let log = server.log();
    assert!(
        !log.contains("PHP Fatal") && !log.contains("(closed)"),
        "{log}"
    );
}

#[test]
fn dokuwiki_works_in_a_browser_with_workers_from_here() {
    if !needs("php-cgi") {
        return;
    }
    let (Some(setup), Some(browser)) = (wiki(), Browser::start()) else {
        return;
    };
    let server = setup.args(["--php", "--workers=3"]).start();
    click_through(&browser, &server);
    leaves_its_work(&server);
}

#[test]
fn dokuwiki_works_in_a_browser_with_php_fpm() {
    // One child more than the server's idle connections could hold.
    let Some(php) = php_fpm(2) else {
        return;
    };
    let (Some(setup), Some(browser)) = (wiki(), Browser::start()) else {
        return;
    };
    let server = setup.arg(format!("--php={}", php.address())).start();
    click_through(&browser, &server);
    leaves_its_work(&server);
}
