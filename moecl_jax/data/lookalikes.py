"""Characters that stand for one another in writing: by their keys, shape, sound or parts.

The lists are short and ours: enough to try how a model bears such texts, no dictionary.
"""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SLANTS = (0.0, 0.25, 0.75)  # how far the rows of a keyboard are moved to the right, in keys
_PLACES = {
    letter: (row, slant + column)
    for row, (letters, slant) in enumerate(zip(_ROWS, _SLANTS, strict=True))
    for column, letter in enumerate(letters)
}

NEIGHBOURS: dict[str, str] = {
    letter: "".join(
        other
        for other, (row, column) in _PLACES.items()
        if other != letter and abs(row - place[0]) <= 1 and abs(column - place[1]) <= 1
    )
    for letter, place in _PLACES.items()
}
"""The letters beside each on a keyboard of the order QWERTY."""

HOMOGLYPHS: dict[str, str] = dict(
    zip(
        "ABCEHIJKMOPSTXYacdehijklmnopsuvwxy",
        "ΑΒСЕНІЈКМОРЅТХУасԁеһіјκӏｍոорѕսνԝху",
        strict=True,
    )
)
"""A Latin letter's double in another script, mostly the Cyrillic one."""

_SAME_SOUND = (
    *(
        "的得地",
        "在再",
        "他她它",
        "做作坐座",
        "是事市式试视",
        "有友又右",
        "我窝",
        "你尼泥妮",
        "不布步",
    ),
    *("了乐", "人仁任", "和合河何", "这浙", "那哪", "要药耀", "会惠汇慧", "没梅眉煤", "来莱"),
    *("到道稻", "说硕", "好郝", "就旧舅", "想响享", "看砍", "能嫩", "对队兑", "也野冶", "还孩海"),
    *("多朵", "用永勇", "心新欣薪", "信芯", "微威薇维", "加家佳嘉", "钱前潜", "买麦卖", "真珍针"),
    *(
        "中忠钟终",
        "国果",
        "大达",
        "小晓",
        "天添",
        "时十石实",
        "生声升",
        "知之支只",
        "机鸡基",
        "电店垫",
    ),
    *("话画化华", "号浩", "码马玛", "快块", "乐勒", "爱碍", "气汽器", "高糕", "红宏洪", "白百"),
    *("长常尝", "车扯", "吃迟", "书输叔", "花哗", "水睡", "房防", "东冬", "西希息", "北被备"),
    *("贷代带", "赌堵", "博勃", "彩采", "票漂", "药要", "毒独", "骗片", "假价架", "死思"),
    *("妈马麻", "爸霸", "傻沙", "笨奔", "猪诸珠", "狗够", "滚棍", "蛋淡", "屁辟", "草操"),
    *("客课刻", "服福符", "物务误", "质至志", "量亮良", "慢漫", "差插", "赞暂", "垃拉", "圾极"),
)

HOMOPHONES: dict[str, str] = {}
"""Chinese characters that sound alike but for the tone, as a writer of pinyin mistakes them."""
for _group in _SAME_SOUND:
    for _character in _group:
        _others = _group.replace(_character, "")
        HOMOPHONES[_character] = "".join(dict.fromkeys(HOMOPHONES.get(_character, "") + _others))

_PARTS = (
    *(
        "好女子",
        "妈女马",
        "她女也",
        "妹女未",
        "姐女且",
        "如女口",
        "奶女乃",
        "娘女良",
        "林木木",
        "相木目",
    ),
    *(
        "村木寸",
        "板木反",
        "机木几",
        "枪木仓",
        "杯木不",
        "松木公",
        "明日月",
        "时日寸",
        "昨日乍",
        "晚日免",
    ),
    *(
        "加力口",
        "动云力",
        "功工力",
        "助且力",
        "劝又力",
        "信亻言",
        "他亻也",
        "你亻尔",
        "们亻门",
        "代亻弋",
    ),
    *(
        "休亻木",
        "体亻本",
        "但亻旦",
        "作亻乍",
        "何亻可",
        "和禾口",
        "种禾中",
        "秋禾火",
        "利禾刂",
        "私禾厶",
    ),
    *(
        "对又寸",
        "双又又",
        "欢又欠",
        "难又隹",
        "吗口马",
        "吃口乞",
        "叫口丩",
        "哪口那",
        "唱口昌",
        "呢口尼",
    ),
    *(
        "听口斤",
        "吧口巴",
        "咬口交",
        "喝口曷",
        "嘴口觜",
        "泡氵包",
        "汽氵气",
        "海氵每",
        "洗氵先",
        "江氵工",
    ),
    *(
        "河氵可",
        "活氵舌",
        "法氵去",
        "汁氵十",
        "湖氵胡",
        "酒氵酉",
        "没氵殳",
        "淡氵炎",
        "课讠果",
        "语讠吾",
    ),
    *(
        "话讠舌",
        "请讠青",
        "谢讠射",
        "读讠卖",
        "词讠司",
        "记讠己",
        "认讠人",
        "识讠只",
        "试讠式",
        "讲讠井",
    ),
    *(
        "订讠丁",
        "让讠上",
        "诈讠乍",
        "谁讠隹",
        "灯火丁",
        "烧火尧",
        "烦火页",
        "炸火乍",
        "烟火因",
        "炒火少",
    ),
    *(
        "钱钅戋",
        "银钅艮",
        "铁钅失",
        "针钅十",
        "钟钅中",
        "错钅昔",
        "赌贝者",
        "财贝才",
        "购贝勾",
        "贴贝占",
    ),
    *(
        "账贝长",
        "贩贝反",
        "博十尃",
        "从人人",
        "众人从",
        "骗马扁",
        "驴马户",
        "验马佥",
        "狗犭句",
        "猪犭者",
    ),
    *(
        "猫犭苗",
        "很彳艮",
        "行彳亍",
        "往彳主",
        "快忄夬",
        "情忄青",
        "忙忄亡",
        "怕忄白",
        "恨忄艮",
        "打扌丁",
    ),
    *(
        "扔扌乃",
        "把扌巴",
        "找扌戈",
        "报扌艮",
        "换扌奂",
        "推扌隹",
        "捞扌劳",
        "肚月土",
        "脚月却",
        "胖月半",
    ),
    *(
        "朋月月",
        "期其月",
        "砍石欠",
        "码石马",
        "破石皮",
        "硬石更",
        "神礻申",
        "福礻畐",
        "视礻见",
        "粉米分",
    ),
    *(
        "粗米且",
        "线纟戋",
        "给纟合",
        "红纟工",
        "级纟及",
        "绝纟色",
        "结纟吉",
        "跑足包",
        "跟足艮",
        "路足各",
    ),
    *(
        "踢足易",
        "饭饣反",
        "饿饣我",
        "饱饣包",
        "饼饣并",
        "彩采彡",
        "影景彡",
        "毒龶母",
        "孩子亥",
        "孙子小",
    ),
)

SPLITS: dict[str, str] = {parts[0]: parts[1:] for parts in _PARTS}
"""Chinese characters, and their two parts as characters of their own."""
