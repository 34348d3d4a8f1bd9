// Shows a desktop with noVNC. The ticket comes in the address's fragment, which no server
// ever sees, and is good for one connection. When that is lost, the broker is asked for
// another, by going there: who is still logged in is back within seconds.
import RFB from "./core/rfb.js";

const PAUSE = 3000; // milliseconds between two tries
const TRIES = 40;

const $ = (id) => document.getElementById(id);
const say = (text) => { $("state").textContent = text; };

const given = new URLSearchParams(location.hash.slice(1));
const kept = JSON.parse(sessionStorage.getItem("desktop") || "{}");
const name = given.get("name") || kept.name || "";
const port = given.get("broker") || kept.port || "443";
const tries = given.get("ticket") ? kept.tries || 0 : 0;
const broker = `https://${location.hostname}${port === "443" ? "" : ":" + port}`;
const keep = (count) => sessionStorage.setItem("desktop", JSON.stringify({ name, port, tries: count }));

document.title = name || "Desktop";
$("name").textContent = name || "Desktop";
$("back").href = `${broker}/desktops`;
// A ticket that is in the history is in the way, though nobody can use it again.
history.replaceState(null, "", location.pathname);

// again goes back to the broker as soon as it answers at all.
async function again() {
	if (tries >= TRIES) {
		say("The desktop cannot be reached.");
		return;
	}
	keep(tries + 1);
	for (;;) {
		await new Promise((done) => setTimeout(done, PAUSE));
		try {
			await fetch(`${broker}/static/icon.svg`, { mode: "no-cors", cache: "no-store" });
			break;
		} catch {
			say("Connection lost. Waiting for the broker…");
		}
	}
	location.replace(`${broker}/desktops/${encodeURIComponent(name)}?again`);
}

function connect(ticket) {
	const rfb = new RFB($("screen"), `wss://${location.host}/websockify?token=${encodeURIComponent(ticket)}`);
	rfb.scaleViewport = true;
	rfb.focusOnClick = true;
	rfb.addEventListener("connect", () => {
		keep(0);
		say("Connected");
		$("keys").hidden = $("full").hidden = false;
		document.body.dataset.state = "connected";
		rfb.focus();
	});
	rfb.addEventListener("disconnect", () => {
		document.body.dataset.state = "lost";
		$("keys").hidden = true;
		say("Connection lost. Opening it again…");
		again();
	});
	$("keys").addEventListener("click", () => rfb.sendCtrlAltDel());
	$("full").addEventListener("click", () => $("screen").requestFullscreen());
}

if (given.get("ticket")) {
	connect(given.get("ticket"));
} else if (/^[a-z0-9-]+$/.test(name)) {
	again(); // the page was loaded anew
} else {
	say("Choose a desktop first.");
}
