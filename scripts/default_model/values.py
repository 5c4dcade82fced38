"""Names, numbers and paths for the placeholders of kinds. A checksum keeps a fifth of them out of training."""

import random
import re
import zlib
from collections.abc import Callable

from kinds import PLACEHOLDER

HELD_OUT_SHARE = 5  # one value in five is only for held-out episodes

WORDS = """account address agenda album alarm alpha analysis answers api archive article asset assets audit auth backend
backup badge balance bank baseline batch beta billing blog board bookmarks books border branch bridge brief
budget build bundle cache calendar camera campaign car cart catalog changes chapter chart chat checks city
class client clients cloud code colors company compare config contacts contract core costs counter course
cover crew customers daily dashboard data dataset debug delivery delta demo deploy design device diary draft
drafts driver email employees energy engine essay events evidence exam example expenses experiment export
family faq features feed feedback fields filter final finance fixtures flags food forecast form frontend
garden gateway goals grades graph groceries group guide handbook handler headers health helper history holiday
homework hosts house ideas images import index info input intro inventory invoice invoices issues items job
journal kernel keys labels lab layout ledger lecture legacy lessons letter library license links list local
log logo lyrics machine mail main manual map market master measurements media meeting members memo menu merge
messages metrics migration minutes mirror misc mobile models module monitor months movies music names network
news nightly node notes numbers office offers old orders outline output overview owners pages paper parser
parts password patch payments payroll people pets phone photos pilot pipeline plan players plot poem policy
portal posts prices print private profile progress project proposal proxy public queries questions queue
quotes radio random rates readings recipes records refactor region release reminder rent report reports
request requirements research results resume review roadmap robot roster routes rules runs salaries sales
sample samples scan schedule schema school scores scratch script search season secrets sensor server session
settings setup shipping shop signals site sizes sketch snapshot songs source speech staff stage staging state
stats status steps stock store stories strings students study styles summary supply survey sync system tables
tasks taxes team temp temperature template tenants terms tests theme thesis tickets timeline timer todo tokens
tools topics tour trace tracking trade train transactions travel trips update upload urls users utils vacation
values vendors version videos views visitors voice volumes votes water weather web week widgets wiki winter
words work worker year zones""".split()
SYLLABLES = """ba be bi da do du fa fe fi ga go ka ki ko la le li lo lu ma mi mo na ne no pa pe pi ra re ri ro sa se si
so ta te ti to va ve vi za zo""".split()
ENDINGS = {
    "txt": "txt",
    "log": "log",
    "csv": "csv",
    "json": "json",
    "py": "py",
    "sh": "sh",
    "md": "md",
    "cfg": "cfg",
    "yaml": "yaml",
    "xml": "xml",
    "html": "html",
    "ini": "ini",
    "sql": "sql",
    "js": "js",
    "c": "c",
    "tar": "tar.gz",
    "tbz": "tar.bz2",
    "zip": "zip",
    "gz": "gz",
    "img": "jpg",
    "pdf": "pdf",
    "bak": "bak",
}
LISTS = {
    "abs": "/var/log/nginx /var/log /var/log/apt /srv/app /srv/data /srv/www /opt/data /opt/app /opt/tools /etc/nginx "
    "/etc/ssh /etc/cron.d /etc/systemd /usr/local/bin /usr/share/doc /var/lib/docker /var/lib/postgresql /var/cache "
    "/var/www /var/www/html /var/spool/cron /var/backups /mnt/backup /mnt/data /media/usb /home/anna /home/dev "
    "/home/sam/projects /home/maria/photos /tmp/build /data/raw /data/models /usr/lib /usr/include /root /boot "
    "/var/mail /var/tmp /etc /opt /srv /home /usr/local",
    "ext": "log txt py csv json md sh yaml xml html tmp bak jpg png pdf conf c js sql ini gz zip old out orig css rs",
    "user": "anna ben carla dev deploy emma felix grace henry ivan julia karl lena maria nina oscar paul rosa sam "
    "tom vera postgres jenkins ci backup alice bob mike sara",
    "group": "staff users developers admin www-data docker wheel sudo audio video backup team ops sales students devs",
    "proc": "nginx python3 node java postgres redis-server chrome firefox sshd cron gunicorn celery mysqld dockerd "
    "code rsync ffmpeg vim tmux apache2 mongod uvicorn make wget",
    "svc": "nginx ssh postgresql redis docker cron apache2 mysql mariadb rsyslog fail2ban prometheus grafana gunicorn "
    "celery mosquitto bluetooth cups NetworkManager tailscaled haproxy php-fpm chrony",
    "pkg": "requests numpy pandas flask django pytest rich black ruff scipy matplotlib fastapi pydantic httpx click "
    "sqlalchemy pillow lxml boto3 jinja2 aiohttp tqdm pyyaml redis celery uvicorn mypy attrs networkx beautifulsoup4",
    "deb": "curl git htop jq tree nginx vim tmux build-essential ripgrep unzip rsync ffmpeg sqlite3 python3-pip "
    "nodejs redis-server postgresql imagemagick nmap net-tools wget zip make cmake gdb strace shellcheck",
    "tz": "Europe/Berlin Asia/Tokyo America/New_York Asia/Seoul Europe/London America/Los_Angeles Asia/Kolkata "
    "Australia/Sydney America/Sao_Paulo Africa/Cairo Europe/Paris Asia/Shanghai UTC",
    "target": "all build clean test install lint docs release run check dist deploy format package start help coverage",
    "mode": "644 600 755 700 640 664 750 400 444 775 660 711",
    "name": "Anna Ben Carla David Emma Felix Grace Henry Ivan Julia Karl Lena Maria Nina Oscar Paul Rosa Sam Tom Vera "
    "Alice Bob Mike Sara Jonas Clara Peter Laura Max Sophie",
    "key": "name id price email city status total date user count size score type title amount age country quantity "
    "version level host time value category state author language",
}
FILE_ENDINGS = (
    *"txt txt txt txt md md md csv csv log log json json py py html html dat conf yml yaml toml tsv ini js css".split(),
    *"sql xml cfg tex rst sh lst c old bak".split(),
)
PLACES = ("/srv/", "/opt/", "/home/anna/", "/home/dev/", "/var/", "/data/", "/mnt/", "~/", "~/", "./", "../")
VERBS = "add fix update remove improve handle rename check support move clean test".split()


def held_out(value: str) -> bool:
    """Whether a value is one of the fifth that only held-out episodes use."""
    return zlib.crc32(value.encode()) % HELD_OUT_SHARE == 0


class Values:
    """Random values for one episode. A placeholder keeps its value; two placeholders never have the same."""

    def __init__(self, rng: random.Random, held: bool, anywhere: bool = False) -> None:
        """`anywhere`: a folder can also be an absolute path, or one in the home folder."""
        self.rng, self.held, self.anywhere = rng, held, anywhere
        self.given: dict[str, str] = {}

    def fill(self, text: str) -> str:
        """The text with a value for each placeholder."""
        return PLACEHOLDER.sub(lambda match: self.value(match[0]), text)

    def value(self, placeholder: str) -> str:
        if placeholder not in self.given:
            match = PLACEHOLDER.fullmatch(placeholder)
            assert match is not None
            self.given[placeholder] = self._make(match[1])
        return self.given[placeholder]

    def _draw(self, make: Callable[[], str], split: bool = True) -> str:
        for _ in range(1000):
            value = make()
            if value not in self.given.values() and (not split or held_out(value) == self.held):
                return value
        raise ValueError("no value is left")

    def _stem(self) -> str:
        rng = self.rng
        word = (
            rng.choice(WORDS) if rng.random() < 0.8 else "".join(rng.choices(SYLLABLES, k=rng.choice((2, 3))))
        )
        chance = rng.random()
        if chance < 0.25:
            word += rng.choice("__-") + rng.choice(WORDS)
        elif chance < 0.33:
            word += rng.choice(("", "-", "_")) + str(
                rng.choice((rng.randint(1, 99), rng.randint(2019, 2026)))
            )
        elif chance < 0.36:
            word = word.capitalize()
        elif chance < 0.38:
            word = word.upper()
        return word

    def _place(self) -> str:
        chance = self.rng.random() if self.anywhere else 1.0
        if chance < 0.08:
            return self.rng.choice(LISTS["abs"].split())
        if chance < 0.25:
            return self.rng.choice(PLACES) + self._folder()
        return self._folder()

    def _folder(self) -> str:
        return self._stem() if self.rng.random() < 0.7 else f"{self._stem()}/{self._stem()}"

    def _make(self, kind: str) -> str:  # one line for each placeholder
        rng = self.rng
        if kind in ENDINGS:
            return self._draw(lambda: f"{self._stem()}.{ENDINGS[kind]}")
        if kind in LISTS:
            return self._draw(lambda: rng.choice(LISTS[kind].split()), split=False)
        makers: dict[str, Callable[[], str]] = {
            "file": lambda: f"{self._stem()}.{rng.choice(FILE_ENDINGS)}",
            "dir": self._place,
            "path": lambda: f"{self._folder()}/{self._stem()}.{rng.choice(('txt', 'md', 'csv', 'log'))}",
            "word": lambda: rng.choices(
                (
                    self._stem(),
                    rng.choice(WORDS),
                    rng.choice(WORDS).upper(),
                    rng.choice(("TODO", "error", "FIXME", "import")),
                ),
                (5, 5, 1, 2),
            )[0],
            "text": lambda: " ".join(rng.choices(WORDS, k=rng.randint(2, 3))),
            "branch": lambda: rng.choice(("", "", "feature/", "fix/", "release/")) + self._stem().lower(),
            "host": lambda: (
                self._stem().lower().replace("_", "-")
                + rng.choice((".example.com", ".local", "", ".org", ".example.net"))
            ),
            "url": lambda: f"https://{rng.choice(WORDS)}.example.{rng.choice(('com', 'org'))}/{self._stem()}",
            "email": lambda: f"{rng.choice(LISTS['user'].split())}@{rng.choice(WORDS)}.example.com",
            "var": lambda: re.sub("[^A-Z0-9]", "_", self._stem().upper()),
            "commit": lambda: f"{rng.choice(VERBS)} {rng.choice(WORDS)} {rng.choice(WORDS)}",
        }
        if kind in makers:
            return self._draw(makers[kind])
        numbers: dict[str, Callable[[], str]] = {
            "num": lambda: str(rng.randint(2, 50)),
            "big": lambda: str(rng.randint(100, 9000)),
            "col": lambda: str(rng.randint(1, 6)),
            "port": lambda: str(
                rng.choice((80, 443, 8080, 3000, 5000, 5432, 6379, rng.randint(1024, 65000)))
            ),
            "pid": lambda: str(rng.randint(200, 64000)),
            "ip": lambda: (
                f"{rng.choice((10, 172, 192))}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"
            ),
            "tag": lambda: (
                f"{rng.choice(('v', 'v', ''))}{rng.randint(0, 5)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}"
            ),
            "hash": lambda: f"{rng.randrange(16**7):07x}",
            "date": lambda: f"{rng.randint(2023, 2026)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            "time": lambda: f"{rng.randint(0, 23):02d}:{rng.choice((0, 5, 10, 15, 20, 30, 45, 50)):02d}",
        }
        if kind not in numbers:
            raise ValueError(f"unknown placeholder <{kind}>")
        return self._draw(numbers[kind], split=False)
