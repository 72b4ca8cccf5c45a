// The words of the page in both languages: one table, [English, Chinese].

const WORDS = {
  review: ["Review", "审核"],
  task: ["Task", "任务"],
  all: ["all", "全部"],
  actions: ["Actions", "操作"],
  add: ["Add texts", "添加文本"],
  export: ["Export", "导出"],
  settings: ["Settings", "设置"],
  text: ["Text", "文本"],
  decision: ["Decision", "决定"],
  skip: ["Later", "稍后"],
  undo: ["Undo", "撤销"],
  about: ["{task} · text {id}", "{task} · 文本 {id}"],
  nothing: ["Nothing waits for you", "没有待审核的文本"],
  nothing_more: [
    "Texts that the model does not decide alone appear here.",
    "模型无法独立判定的文本会出现在这里。",
  ],
  nothing_of_task: ["No text of this task waits for you.", "该任务没有待您审核的文本。"],
  opinion: ["The model says {label} ({chance}).", "模型判断：{label}（{chance}）。"],
  saved: ["Saved: {label}.", "已保存：{label}。"],
  agrees: ["The model said so too ({chance}).", "模型的判断相同（{chance}）。"],
  differs: ["The model said {label} ({chance}).", "模型的判断是 {label}（{chance}）。"],
  second: ["A second reviewer will look at it.", "将由第二位审核员复核。"],
  skipped: ["Left for later.", "已留待稍后。"],
  undone: ["Undone. Decide again.", "已撤销，请重新决定。"],
  no_undo: ["There is nothing to undo.", "没有可撤销的操作。"],
  taken: ["You have decided this text already.", "您已决定过此文本。"],
  retrying: ["Not saved yet: the service does not answer. Trying again…", "尚未保存：服务无响应，正在重试……"],
  reading: ["The service does not answer. Trying again…", "服务无响应，正在重试……"],
  failed: ["That did not work: {detail}", "操作失败：{detail}"],
  progress: ["Progress", "进度"],
  rate: ["decided by the model alone (stripping rate)", "由模型独立判定（剥离率）"],
  stripped: ["decided by the model", "模型已判定"],
  settled: ["decided by reviewers", "审核员已决定"],
  waiting: ["waiting for a second reviewer", "等待第二位审核员"],
  open: ["open", "待审核"],
  no_texts: ["No texts yet.", "尚无文本。"],
  kappa: ["Cohen's κ {kappa}: first and second reviewer ({count} disputed texts)", "Cohen κ {kappa}：第一与第二审核员（{count} 条有争议的文本）"],
  model_kappa: ["Cohen's κ {kappa}: reviewer and model ({count} texts)", "Cohen κ {kappa}：审核员与模型（{count} 条文本）"],
  show_opinion: ["Show the model's opinion before I decide", "决定之前显示模型的判断"],
  paste: ["Paste texts, one a line", "粘贴文本，每行一条"],
  or_file: [
    "Or choose a file: .txt, .jsonl, .csv or .tsv (with a field “text”)",
    "或选择文件：.txt、.jsonl、.csv 或 .tsv（须含字段“text”）",
  ],
  found_by_text: ["found by the text", "由文本判定"],
  add_now: ["Add", "添加"],
  adding: ["Adding…", "正在添加……"],
  added: ["{added} added, {repeated} were there already.", "已添加 {added} 条，{repeated} 条已存在。"],
  refused_texts: [
    " {count} could not be labelled; the first is text {text}: {detail}",
    " {count} 条无法标注；第一条是第 {text} 条：{detail}",
  ],
  not_utf8: ["The file is not UTF-8 text.", "文件不是 UTF-8 文本。"],
  close: ["Close", "关闭"],
  format: ["Format", "格式"],
  format_task: ["Task file (JSON lines, to train on)", "任务文件（JSON lines，用于训练）"],
  format_studio: ["Label Studio (JSON)", "Label Studio 文件（JSON）"],
  format_audit: ["Audit (every step of every reviewer)", "审计记录（每位审核员的每一步）"],
  unsettled: ["Also texts that wait for a second reviewer", "包括等待第二位审核员的文本"],
  download: ["Download", "下载"],
  downloaded: ["{name} is in your downloads.", "{name} 已下载。"],
  name: ["Your name, for the audit", "您的姓名（用于审计）"],
  key: ["Key of the service, if it asks for one", "服务密钥（如需要）"],
  needs_key: ["The service asks for a key of a reviewer.", "服务需要审核员的密钥。"],
  one_key: ["Decide by one key (1 to 9, S, U, M)", "单键决定（1 至 9、S、U、M）"],
  done: ["Done", "完成"],
  hidden_mark: ["invisible character {code}", "不可见字符 {code}"],
};
const LANGUAGES = ["en", "zh"];

let language = LANGUAGES[0];

// The word or phrase of a key, with {names} filled in.
export function word(key, values = {}) {
  const phrase = WORDS[key][LANGUAGES.indexOf(language)];
  return phrase.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function currentLanguage() {
  return language;
}

// Sets the language, and writes all words that stand in the page's HTML.
export function speak(wanted) {
  language = LANGUAGES.includes(wanted) ? wanted : LANGUAGES[0];
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = word(element.dataset.word);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", word(element.dataset.label));
  }
  document.title = word("review");
}
