// Shows texts of unknown origin: always as text, and with what is invisible in it made visible.

import { word } from "./words.js";

// Control characters, marks that turn the direction of text around, and characters of no width or
// without a picture, such as tags, in which a text can be hidden; those that join letters or choose
// the form of an emoji are left as they are.
const INVISIBLE = new RegExp(
  "([\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160"
  + "\\u17b4\\u17b5\\u180e\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u2800\\u3164"
  + "\\ufeff\\uffa0\\ufff0-\\ufffb\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e00ff}])", "u",
);

export function show(element, text) {
  element.replaceChildren();
  text.split(INVISIBLE).forEach((part, index) => {
    if (index % 2 === 0) {
      if (part) element.append(part);
      return;
    }
    const code = `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.title = word("hidden_mark", { code });
    mark.textContent = code;
    element.append(mark);
  });
}
