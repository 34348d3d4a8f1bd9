// Opens the desktop again without a click, once: if it fails too, the button is there.
const form = document.getElementById("open");
history.replaceState(null, "", location.pathname);
form.submit();
