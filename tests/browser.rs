//! The pages in a real browser: the listing and the page of the samples.
//! `UPDATE_SCREENSHOTS=1` takes the pictures in docs/ anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::listing::{HOSTILE, MANY, hostile};
use crate::samples::{build_hello, samples};
use crate::support::webdriver::{Browser, ENTER, TAB};
use crate::support::{Server, Setup, needs, needs_perl_module, shown, tiny_http_cannot};

/// The names in the rows that are shown, in their order.
const NAMES: &str = "[...document.querySelectorAll('#entries tr:not([hidden])')]
    .map((row) => row.cells[0].textContent)";
/// `aria-sort` of the three columns.
const ORDER: &str = "[...document.querySelectorAll('th')].map((head) => head.ariaSort)";

fn music() -> Setup {
    let files: [(&str, u64, &str); 8] = [
        (
            "01 Overture.flac",
            31_480_201,
            "Mon, 02 Mar 2026 19:30:12 GMT",
        ),
        (
            "02 Adagio.flac",
            48_022_817,
            "Mon, 02 Mar 2026 19:41:55 GMT",
        ),
        (
            "03 Scherzo.flac",
            22_790_114,
            "Mon, 02 Mar 2026 19:47:03 GMT",
        ),
        (
            "10 Finale.flac",
            57_310_998,
            "Mon, 02 Mar 2026 20:02:40 GMT",
        ),
        ("Programme.pdf", 184_221, "Fri, 27 Feb 2026 08:15:00 GMT"),
        ("notes.md", 2_114, "Tue, 03 Mar 2026 10:02:31 GMT"),
        ("seating.svg", 12_900, "Thu, 26 Feb 2026 16:44:20 GMT"),
        ("photos/x", 0, "Tue, 03 Mar 2026 09:12:00 GMT"),
    ];
    let setup = Server::new();
    for (name, length, modified) in files {
        let path = setup.root().join("concert").join(name);
        let folder = path.parent().expect("it is below");
        fs::create_dir_all(folder).expect("the root is the test's own");
        let modified = httpdate::parse_http_date(modified).expect("it is an HTTP-date");
        fs::File::create(&path)
            .and_then(|file| file.set_len(length).and(file.set_modified(modified)))
            .expect("the root is the test's own");
        if name.contains('/') {
            let folder = fs::File::open(folder).expect("it was just made");
            folder.set_modified(modified).expect("it is the test's own");
        }
    }
    setup
}

#[test]
fn a_listing_sorts_and_filters_by_mouse_without_leaving_the_page() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = music().start();
    browser.open(&server.url("/concert/"));
    let by_name = json!([
        "photos",
        "01 Overture.flac",
        "02 Adagio.flac",
        "03 Scherzo.flac",
        "10 Finale.flac",
        "notes.md",
        "Programme.pdf",
        "seating.svg",
    ]);
    assert_eq!(browser.value(NAMES), by_name);
    assert_eq!(browser.value(ORDER), json!(["ascending", "none", "none"]));
    browser.value("window.mark = 'still here'");

    let size = browser.find("th.size a");
    browser.click(&size);
    let by_size = json!([
        "photos",
        "10 Finale.flac",
        "02 Adagio.flac",
        "01 Overture.flac",
        "03 Scherzo.flac",
        "Programme.pdf",
        "seating.svg",
        "notes.md",
    ]);
    assert_eq!(browser.value(NAMES), by_size);
    assert_eq!(browser.value(ORDER), json!(["none", "descending", "none"]));
    browser.click(&size);
    assert_eq!(browser.value(ORDER), json!(["none", "ascending", "none"]));
    assert_eq!(browser.value(NAMES)[1], "notes.md");
    browser.click(&browser.find("th.time a"));
    assert_eq!(browser.value(ORDER), json!(["none", "none", "descending"]));
    assert_eq!(browser.value(NAMES)[1], "notes.md");
    assert_eq!(browser.value(NAMES)[7], "seating.svg");

    browser.fill(&browser.find("input[type=search]"), "FLAC");
    let shown = browser.value(NAMES);
    assert_eq!(shown.as_array().map(Vec::len), Some(4), "{shown}");
    assert_eq!(
        browser.value("document.querySelector('#summary').textContent"),
        "4 of 8"
    );
    assert_eq!(browser.value("window.mark"), "still here");
    // The policy has refused nothing of the page's own.
    assert_eq!(browser.complaints(), [""; 0]);
    picture(&browser, &server, "listing.png", "/concert/", (1000, 480));
}

#[test]
fn a_long_listing_is_used_like_a_short_one() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let setup = music();
    for number in 0..MANY {
        let path = setup.root().join(format!("concert/x{number}"));
        fs::File::create(path).expect("the root is the test's own");
    }
    let server = setup.start();
    // In an order by which the names' can't be told.
    browser.open(&server.url("/concert/?sort=size&order=desc"));
    assert_eq!(browser.value(ORDER), json!(["none", "descending", "none"]));
    assert_eq!(browser.value(NAMES)[1], "10 Finale.flac");
    let summary = "document.querySelector('#tools > #summary').textContent";
    assert_eq!(browser.value(summary), "1 folder, 2107 files, 159.8 MB");
    browser.click(&browser.find("th.name a"));
    let names = browser.value(NAMES);
    assert_eq!(names[0], "photos");
    assert_eq!(names[1], "01 Overture.flac");
    assert_eq!(names[8], "x0");
    assert_eq!(names[18], "x10");
    browser.fill(&browser.find("input[type=search]"), "FLAC");
    assert_eq!(browser.value(summary), "4 of 2108");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_listing_is_used_by_keyboard_alone() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = music().start();
    browser.open(&server.url("/concert/"));
    tab_to(&browser, "th.size a");
    let ring = browser.value("getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(ring, "solid", "the focus is not to be seen");
    browser.press(ENTER);
    assert_eq!(browser.value(ORDER), json!(["none", "descending", "none"]));
    assert_eq!(browser.value(NAMES)[1], "10 Finale.flac");
    // The focus stays, so the next key turns the order round.
    browser.press(ENTER);
    assert_eq!(browser.value(ORDER), json!(["none", "ascending", "none"]));
    // On to the first entry, which is a folder, and into it.
    tab_to(&browser, "#entries tr:first-child a");
    browser.press(ENTER);
    browser.wait_for("location.pathname === '/concert/photos/'");
    assert_eq!(browser.value(NAMES), json!(["x"]));
    tab_to(&browser, "tr.up a");
    browser.press(ENTER);
    browser.wait_for("location.pathname === '/concert/'");
}

/// Presses the tabulator until the element has the focus.
fn tab_to(browser: &Browser, selector: &str) {
    let there = format!("document.activeElement.matches({})", json!(selector));
    for _ in 0..40 {
        if browser.value(&there) == true {
            return;
        }
        browser.press(TAB);
    }
    panic!("the tabulator does not lead to {selector}");
}

#[test]
fn hostile_names_are_shown_as_text_and_lead_to_their_files() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = hostile().start();
    browser.open(&server.url("/folder/"));
    let links = browser.value("[...document.querySelectorAll('#entries a')].map((a) => a.href)");
    let links = links.as_array().expect("a list");
    assert_eq!(links.len(), HOSTILE.len() + 1);
    let mut seen = BTreeSet::new();
    for link in links.iter().filter_map(Value::as_str) {
        // As the browser would ask for it.
        let target = link.strip_prefix(&server.url("")).expect("it stays here");
        let response = server.get(target);
        assert_eq!(response.status, 200, "{link}");
        seen.insert(response.body);
    }
    for name in HOSTILE {
        assert!(seen.contains(name), "no link led to {}", shown(name));
    }

    // Nothing was taken for mark-up, nothing turns or breaks the line.
    assert_eq!(
        browser.value("document.querySelectorAll('script').length"),
        1
    );
    let odd = browser.value(
        "[...document.querySelectorAll('#entries a')].map((a) => a.textContent)
            .filter((name) => /[\\p{Cc}\\u200b\\u202a-\\u202e\\ufeff]/u.test(name))",
    );
    assert_eq!(odd, json!([]), "names with invisible characters");
    let names = browser.value(NAMES);
    for name in [
        "<script>alert(1)<",
        "double\"quote",
        "%41",
        "&amp;",
        "{{rows}}",
        "new\u{240a}line",
    ] {
        let has = names
            .as_array()
            .is_some_and(|names| names.contains(&name.into()));
        assert!(has, "no `{name}` in {names}");
    }
    assert_eq!(browser.complaints(), [""; 0]);

    // A name of 255 letters in a row fits a phone.
    browser.resize(320, 640);
    let wide = browser.value("document.documentElement.scrollWidth - innerWidth");
    assert!(wide.as_i64() <= Some(0), "{wide} pixels too wide");

    // And one for real.
    let link = "[...document.querySelectorAll('#entries a')].find((a) => a.textContent === '%41')";
    browser.value(&format!("{link}.click()"));
    browser.wait_for("document.body.innerText.trim() === '%41'");
}

#[test]
fn a_listing_is_dark_for_who_likes_it_dark_and_readable_in_both() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = music().start();
    for (scheme, dark) in [("light", false), ("dark", true)] {
        browser.prefer_colours(scheme);
        browser.open(&server.url("/concert/"));
        let back = luminance(&browser, "document.body", "backgroundColor");
        assert_eq!(back < 0.2, dark, "{scheme}: {back}");
        for element in [
            "body",
            "#entries a",
            "#entries td:last-child",
            "#summary",
            "th a",
            "nav a",
        ] {
            let element = format!("document.querySelector('{element}')");
            let text = luminance(&browser, &element, "color");
            let (light, dim) = if dark { (text, back) } else { (back, text) };
            // WCAG 2.1 §1.4.3, level AA.
            let contrast = (light + 0.05) / (dim + 0.05);
            assert!(contrast >= 4.5, "{scheme}: {element}: {contrast}");
        }
    }
}

/// Relative luminance of a colour, from 0 to 1 (WCAG 2.1).
fn luminance(browser: &Browser, element: &str, property: &str) -> f64 {
    let colour = browser.value(&format!(
        "getComputedStyle({element}).{property}.match(/[0-9.]+/g).map(Number)"
    ));
    let part = |index: usize| {
        let part = colour[index].as_f64().expect("a colour has three parts") / 255.0;
        if part <= 0.04045 {
            part / 12.92
        } else {
            ((part + 0.055) / 1.055).powf(2.4)
        }
    };
    0.2126 * part(0) + 0.7152 * part(1) + 0.0722 * part(2)
}

#[test]
fn the_page_of_the_samples_works() {
    if tiny_http_cannot("serve a burst of connections at once") {
        return;
    }
    let Some(browser) = Browser::start() else {
        return;
    };
    let programs = ["python3", "php-cgi", "cc"].map(needs);
    if programs.contains(&false) || !needs_perl_module("CGI") {
        return;
    }
    let setup = samples();
    build_hello(&setup);
    let upload = setup.root().join("www/style.css");
    let book = setup.root().join("book").display().to_string();
    let server = setup
        .args(["--cgi-env", &format!("GUESTBOOK_FILE={book}")])
        .start();
    browser.open(&server.url("/www/"));

    // The clock ticks, and ticks again.
    let time = "document.querySelector('#time').textContent";
    browser.wait_for(&format!("/^\\d\\d:\\d\\d:\\d\\d$/.test({time})"));
    let first = browser.value(time);
    browser.wait_for(&format!("{time} !== {first}"));
    browser.wait_for("document.querySelector('#picture-image').naturalWidth === 240");

    let answer = |frame: &str, text: &str| {
        let frame = format!("document.querySelector('iframe[{frame}]').contentDocument");
        browser.wait_for(&format!("{frame}.body.innerText.includes({})", json!(text)));
    };
    answer("title=\"Visit counter\"", "You have been here 1 time.");
    answer(
        "title=\"Environment of a script\"",
        "GATEWAY_INTERFACE=CGI/1.1",
    );
    answer("name=calendar-answer", "Mo");
    answer("name=path-answer", "/tea/green");
    answer("name=hello-answer", "Hello, world, from C.");

    let form = "form[action='/cgi-bin/form.py'] button";
    browser.click(&browser.find(&format!("{form}:not([formmethod])")));
    answer("name=form-answer", "Sent by GET, 2 field(s)");
    browser.click(&browser.find(&format!("{form}[formmethod=post]")));
    answer("name=form-answer", "Sent by POST, 2 field(s)");
    answer("name=form-answer", "Ada <Lovelace>");

    browser.fill(
        &browser.find("form[action='/cgi-bin/upload.py'] input[type=file]"),
        upload.to_str().expect("its name is ASCII"),
    );
    for script in ["button:not([formaction])", "button[formaction]"] {
        browser.click(&browser.find(&format!("form[action='/cgi-bin/upload.py'] {script}")));
        let length = fs::metadata(&upload).expect("it is there").len();
        answer("name=upload-answer", &format!("{length} bytes"));
    }
    browser.click(&browser.find("a[href$='to=local']"));
    answer("name=redirect-answer", "REDIRECT_URL=/cgi-bin/redirect.sh");
    assert_eq!(browser.complaints(), [""; 0]);
    picture(&browser, &server, "demo.png", "/www/", (1000, 900));
}

/// Takes the picture in docs/ anew, if that is asked for.
fn picture(browser: &Browser, server: &Server, name: &str, target: &str, size: (u32, u32)) {
    if std::env::var_os("UPDATE_SCREENSHOTS").is_none() {
        return;
    }
    browser.resize(size.0, size.1);
    browser.open(&server.url(target));
    browser.wait_for("[...document.images].every((image) => image.complete)");
    let picture = browser.screenshot();
    assert!(picture.len() < 200_000, "{name}: {} bytes", picture.len());
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    fs::write(path, picture).expect("docs/ can be written");
}
