// The page works without this: it adds the running clock, the picture that
// follows your typing, and a look whether PHP, Perl and the C program are there.

"use strict";

const time = document.getElementById("time");
const clockButton = document.getElementById("clock-button");
let events = null;

function startClock() {
  events = new EventSource("/cgi-bin/clock.sh");
  events.onmessage = (event) => { time.textContent = event.data; };
  // The script says when it is done; otherwise the browser would ask again.
  events.addEventListener("end", stopClock);
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) stopClock(); };
  clockButton.textContent = "Stop";
}

function stopClock() {
  events.close();
  events = null;
  clockButton.textContent = "Start";
}

clockButton.hidden = false;
clockButton.addEventListener("click", () => { if (events) stopClock(); else startClock(); });
startClock();

const pictureForm = document.getElementById("picture-form");
const pictureImage = document.getElementById("picture-image");
let typing = 0;

function drawPicture() {
  pictureImage.src = pictureForm.action + "?" + new URLSearchParams(new FormData(pictureForm));
}

pictureForm.addEventListener("submit", (event) => { event.preventDefault(); drawPicture(); });
pictureForm.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(drawPicture, 250);
});

// A frame whose script may not run on this machine keeps its hint unless it does.
for (const frame of document.querySelectorAll("iframe[data-try]")) {
  fetch(frame.dataset.try, { method: "HEAD" })
    .then((answer) => {
      if (!answer.ok) return;
      frame.removeAttribute("srcdoc");
      frame.src = frame.dataset.try;
    })
    .catch(() => {});
}
