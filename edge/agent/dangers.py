"""What programs can do, by their names and words: the data and the patterns behind edge/agent/risks.py.

The kinds are a help for a person; they are not complete.
"""

import re

from edge.terminal.obeyed import acted_on

RUNS_FOLDER = "runs code of the folder"
RUNS_TEXT = "runs text as a program"
RUNS_OTHER = "runs another program"
SYSTEM = "changes the system"
ELSEWHERE = "changes another system"
REPOSITORY = "changes the repository"
KEYS = "reads keys or passwords"
ACTED_ON = "writes a file that other programs act on"

_NAMES = {
    "delete": (
        "rm rmdir unlink shred truncate wipefs userdel groupdel deluser delgroup dropdb dropuser srm wipe "
        "blkdiscard fdisk sfdisk parted sgdisk lvremove vgremove pvremove trash trash-put gio hdparm nvme dmsetup "
        "nix-collect-garbage rimraf del-cli trash-empty fdupes jdupes tmpreaper tmpwatch bleachbit badblocks "
        "pg_dropcluster pg_resetwal initdb snapper rmlint czkawka_cli bfg del rd erase format diskpart "
        "cfdisk gdisk xfs_repair debugfs"
    ),
    "overwrite": (
        "mv cp dd tee install rsync ln patch unzip gunzip gzip bzip2 xz zstd cpio split csplit rename mmv "
        "pg_restore sponge sd rpl 2to3 pyupgrade codemod nano ed "
        "duperemove strip fallocate exiftool mogrify vidir detox pax qemu-img robocopy "
        "dos2unix unix2dos autoflake goimports nbstripout futurize php-cs-fixer phpcbf comby fastmod sad ambr "
        "jscodeshift unrar unar vi vim nvim emacs pico micro hx kak joe mcedit fio swiftformat"
    ),
    "privilege": (
        "sudo su doas pkexec chown chgrp chmod chattr setcap setfacl visudo passwd chpasswd usermod useradd "
        "adduser groupadd gpasswd mount umount runuser newgrp sg chroot nsenter "
        "setpriv capsh groupmod vipw newusers"
    ),
    "network": (
        "curl wget ssh scp sftp nc ncat netcat socat telnet ftp lftp rsync ping dig nslookup host aria2c axel "
        "http https xh lynx w3m links elinks nmap masscan traceroute tracepath mtr whois mail mailx mutt sendmail "
        "msmtp swaks rclone s3cmd mosh autossh sshpass ssh-copy-id rsh rlogin tftp snmpwalk ldapsearch smbclient "
        "twine ngrok cloudflared frpc chisel websocat wscat yt-dlp youtube-dl psql mysql mariadb mongo mongosh "
        "redis-cli clickhouse-client cqlsh sqlcmd sqlplus pg_dump pg_restore mysqldump npx bunx uvx pipx "
        "pip-compile helm skopeo crane pssh parallel-ssh syncthing unison lsyncd imapsync "
        "tailscale zerotier-cli wg-quick openvpn warp-cli tsh croc wormhole magic-wormhole ffsend pastebinit gist "
        "transfer "
        "sshfs sshuttle lt localtunnel bore http-server live-server tcpdump tshark nikto sqlmap hydra gobuster "
        "ffuf mitmproxy "
        "mitmdump ettercap bettercap arpspoof hping3 ab wrk hey k6 vegeta siege slackcat telegram-send ntfy "
        "apprise kaggle "
        "openai modal mongodump cpan cpanm pod nuget llm sgpt yay paru "
        "termbin ix 0x0 lms i2p wireshark msfconsole msfvenom aircrack-ng airodump-ng responder crackmapexec netexec "
        "nxc xdg-email xmrig minerd cpuminer cgminer bfgminer kubeseal trivy"
    ),
    RUNS_TEXT: "eval source . exec xargs parallel entr",
    RUNS_OTHER: (
        "env nohup setsid nice timeout stdbuf strace ltrace gdb lldb taskset chrt unshare systemd-run fakeroot "
        "proxychains proxychains4 torsocks torify watch script expect flock rlwrap npx bunx uvx pipx setarch "
        "linux32 linux64 prlimit cpulimit start-stop-daemon caffeinate osascript dbus-send gdbus busctl chroot "
        "nsenter runuser xdotool ydotool wmctrl gnome-terminal "
        "aws-vault xdg-open open claude gemini codex aider cursor-agent opencode qwen crush amp droid openclaw"
    ),
    "stops processes or services": (
        "kill pkill killall xkill shutdown reboot halt poweroff telinit init systemctl service rc-service "
        "launchctl skill fuser loginctl supervisorctl pm2 apachectl rabbitmqctl nginx killall5 sv s6-svc initctl"
    ),
    "schedules a command": "crontab at batch atq atrm systemd-run launchctl anacron",
    "changes what commands mean": "alias unalias enable hash trap bind complete shopt stty "
    "update-alternatives direnv",
    "runs in the background": "screen tmux disown bg daemonize byobu",
    SYSTEM: (
        "sysctl modprobe insmod rmmod depmod iptables ip6tables nft ufw firewall-cmd ifconfig route hostnamectl "
        "hostname timedatectl localectl ldconfig update-grub grub-install efibootmgr mkswap swapon swapoff "
        "mkinitcpio dracut dpkg rpm dpkg-reconfigure alternatives snap flatpak setenforce apparmor_parser "
        "auditctl losetup cryptsetup mdadm lvcreate vgcreate pvcreate mknod chsh timedatectl useradd adduser "
        "groupadd networksetup defaults spctl csrutil fstrim logrotate nmcli rfkill ipset emerge "
        "resize2fs tune2fs e2fsck fsck xfs_growfs dconf gsettings xdg-settings reg sc schtasks icacls takeown bcdedit "
        "cipher xbps-remove bootctl flashrom fwupdmgr esptool avrdude openocd adb fastboot dscl diskutil vssadmin "
        "hwclock netplan dhclient brctl iw bluetoothctl add-apt-repository apt-key apt-mark nixos-rebuild home-manager "
        "softwareupdate pmset nvram systemsetup scutil sysadminctl rc-update update-rc.d chkconfig eject fusermount "
        "fusermount3 tmutil yay paru"
    ),
    "acts on a database": (
        "psql mysql mariadb mongo mongosh redis-cli sqlite3 clickhouse-client cqlsh sqlcmd sqlplus duckdb "
        "mysqladmin pg_restore createdb dropdb dropuser influx neo4j cypher-shell cockroach liquibase flyway alembic "
        "diesel sqlx atlas wp drush "
        "knex dbt prisma drizzle-kit typeorm sequelize mongorestore goose dbmate sqitch airflow"
    ),
    RUNS_FOLDER: (
        "make gmake bmake ninja just task rake invoke tox nox pytest py.test ctest bazel buck scons meson gradle "
        "gradlew mvn mvnw ant sbt lein mix vagrant snakemake nextflow jest vitest mocha karma cypress playwright "
        "tsx ts-node papermill fab cap phpunit rspec docker-compose act pre-commit lefthook husky rails "
        "jupyter streamlit uvicorn gunicorn hypercorn flask gradio celery locust fastlane xcodebuild buck2 "
        "spark-submit rebar3 artisan scrapy"
    ),
    KEYS: "john hashcat mimikatz gcore ssh-add pbpaste wl-paste kwallet-query git-crypt impacket-secretsdump lazagne",
    "records the screen, the camera or the microphone": (
        "screencapture scrot grim slurp maim flameshot gnome-screenshot spectacle import xwd arecord parecord parec "
        "fswebcam imagesnap streamer asciinema recordmydesktop wf-recorder"
    ),
    "encrypts files": "ccrypt mcrypt ccencrypt age rage cryptsetup encfs gocryptfs ecryptfs-setup-private veracrypt",
    "takes all of the processor": "xmrig minerd cpuminer stress stress-ng sysbench cgminer bfgminer prime95 mprime",
    "writes the clipboard": "pbcopy wl-copy",
}
KINDS: dict[str, list[str]] = {}
for _kind, _listed in _NAMES.items():
    for _word in _listed.split():
        KINDS.setdefault(_word, []).append(_kind)
INTERPRETER = re.compile(
    r"(?:ba|da|z|k|c|tc|a|fi)?sh|python[0-9.]*|perl|ruby|node|nodejs|php|lua|deno|bun|Rscript|julia|pwsh"
)
PRINTS_VARIABLES = re.compile(r"(?:declare|typeset|export|readonly)(?:\s+-[a-zA-Z]*[px][a-zA-Z]*)*\s*")
WRAPPERS = frozenset(
    (
        "sudo doas env nohup nice time timeout xargs command builtin exec setsid ionice busybox stdbuf strace "
        "ltrace taskset chrt unshare nsenter systemd-run fakeroot proxychains proxychains4 torsocks torify watch "
        "chroot runuser prlimit caffeinate parallel npx bunx uvx toybox"
    ).split()
)
# Tools whose commands act on machines, accounts and clusters elsewhere.
_REMOTE = frozenset(
    (
        "aws gcloud gsutil bq az kubectl k oc helm helmfile kustomize terraform tofu terragrunt pulumi ansible "
        "ansible-playbook doctl heroku fly flyctl vercel netlify firebase supabase wrangler railway render gh "
        "glab hub s3cmd rclone mc eksctl minikube kind k3d nomad consul vault oci ibmcloud linode-cli hcloud "
        "openstack cf eb sam serverless sls cdk argocd flux istioctl velero kops kubeadm etcdctl juju salt salt- "
        "call puppet chef knife virsh vagrant govc cloudflared stripe twilio okta op hub s5cmd packer "
        "scw exo vultr-cli upctl civo pscale planetscale doppler infisical chamber teleport tsh snowsql hdfs hadoop "
        "hive beeline nats kafka-console-producer wandb mlflow"
    ).split()
)
_READS = re.compile(
    r"(?:get|list|ls|describe|show|view|plan|version|status|logs?|diff|fmt|validate|explain|top|search|"
    r"whoami|help|info|"
    r"output|graph|auth-list|cluster-info|api-resources|template|lint|--help|--version|inspect|cat|head|tail|"
    r"(?:describe|get|list|head)-[\w-]+)"
)
_DELETES = re.compile(
    r"(?:delete|destroy|terminate|remove|rm|rb|del|purge|prune|drop|uninstall|undefine|wipe|erase|"
    r"cleanup|nuke|evict|drain|"
    r"flushall|flushdb|reset|--delete|--prune|--purge)(?:[:-].*)?|.*:(?:destroy|delete|remove)|-?X?delete",
    re.IGNORECASE,
)
_GIT = r"git\s+(?>-[Cc]\s+\S+\s+|-\S+\s+)*+"
_PACKAGES = (
    r"(?:pip[0-9.]*|npm|pnpm|yarn|bun|cargo|gem|go|uv|apt|apt-get|aptitude|dnf|yum|zypper|pacman|apk|"
    r"brew|port|conda|mamba|"
    r"poetry|pdm|pipenv|pipx|composer|bundle|nuget|dotnet|luarocks|cpan|cpanm|opam|cabal|stack|rustup|"
    r"nix-env|nix|snap|"
    r"ansible-galaxy|sdk|rbenv|volta|fnm|pod|flatpak|choco|winget|scoop|easy_install|asdf|mise|nvm|pyenv|helm|code)\s+(?:\S+\s+)*"
)
_SCRIPTED = r"(?:npm|pnpm|yarn|bun|deno)\s+(?:\S+\s+)*"
# Words that make a command risky when its name alone does not.
_PHRASES = [
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (r"mkfs\b", "delete"),
        (r"find\b.*\s-delete\b", "delete"),
        (r"find\b.*\s-(?:exec|execdir|ok|okdir)\b", RUNS_TEXT),
        (r"find\b.*\s-f(?:printf|print0?|ls)\b", "overwrite"),
        (r"(?:fd|fdfind)\b.*\s(?:-[xX]|--exec(?:-batch)?)\b", RUNS_TEXT),
        (rf"{_GIT}(?:clean|reset\s+--hard|checkout\s+--|branch\s+.*-[dD]|tag\s+.*-d|stash\s+(?:drop|"
         rf"clear)|worktree\s+remove|"
         r"remote\s+(?:remove|rm|prune)|reflog\s+(?:expire|delete)|gc|prune|rm|filter-branch|filter-repo|"
         r"push\s+.*"
         r"(?:--delete|\s:\S|--mirror|--prune|-d\b))", "delete"),
        (rf"{_GIT}push\s+(?:.*\s)?(?:-f\b|--force|\+)", "overwrite"),
        (rf"{_GIT}(?:push|pull|fetch|clone|submodule|ls-remote|daemon|instaweb|http-push|p4|request-pull|remote\s+(?:update|show)|"
         rf"archive\s+.*--remote|lfs|svn|send-email)\b",
         "network"),
        (rf"{_GIT}(?:commit|merge|rebase|cherry-pick|revert|am|apply|reset|tag\s+[^-\s]\S*|"
         rf"branch\s+(?:-[mMcCf]\s+)?[^-\s]\S*|switch|"
         r"checkout|pull|stash|notes|update-ref|symbolic-ref|replace|filter-branch|filter-repo|mv|add|rm|"
         r"gc|worktree\s+(?:add|prune|move)|update-index|maintenance|bundle\s+unbundle|fast-import|update-server-info|"
         r"init|bisect)\b", REPOSITORY),
        (rf"{_GIT}(?:config\s+(?!--get|-l\b|--list)\S|remote\s+(?:add|set-url)|"
         r"hook\b)", "changes what commands mean"),
        (r"git\s+(?:\S+\s+)*?(?:-c\b|--exec-path|--config-env)", RUNS_OTHER),
        (rf"{_GIT}(?:bisect\s+run|rebase\s+.*(?:-x|--exec)|submodule\s+foreach|filter-branch|difftool|"
         rf"mergetool|for-each-repo|"
         r"grep\s+.*(?:-O|--open-files)|.*--(?:ext-diff|upload-pack|receive-pack|textconv))", RUNS_OTHER),
        (rf"{_GIT}(?:push|send-email)\b|(?:npm|pnpm|yarn|cargo|gem|bun|vsce|poetry|uv|hatch|flit|"
         rf"dotnet\s+nuget)\s+(?:\S+\s+)*"
         r"(?:publish|push)\b|twine\s+upload|(?:docker|podman|buildah|skopeo|crane|"
         r"oras)\s+(?:\S+\s+)*(?:push|copy)\b|"
         r"(?:gh|glab|hub)\s+(?:pr|mr|issue|release|gist|repo|discussion|workflow|secret|variable)\s+"
         r"(?:create|merge|comment|close|edit|upload|new|run|set|review|sync|fork|rename|archive|delete)\b|"
         r"huggingface-cli\s+upload|hf\s+upload|(?:semantic-release|goreleaser|np|changeset\s+publish|"
         r"lerna\s+publish)\b",
         "publishes"),
        (rf"{_PACKAGES}(?:install|add|get|update|upgrade|i|ci|it|cit|sync|lock|dlx|exec|create|init|"
         rf"download|fetch|"
         r"require|restore|self-update|localinstall|reinstall|-S\w*|-U\w*)\b|(?:npm|bun|pnpm)\s+x\b|"
         r"yarn\s*$|uv\s+(?:run|tool)\b", "network"),
        (rf"{_SCRIPTED}(?:install|add|i|ci|it|cit|update|upgrade|up|dlx|exec|x|create|init|rebuild|"
         rf"link)\b|yarn\s*$",
         RUNS_OTHER),
        (rf"{_SCRIPTED}(?:run|run-script|test|t|start|stop|restart|task|exec|build|dev|ci|install|i|"
         rf"prepare|pack)\b|"
         r"(?:cargo)\s+(?:\S+\s+)*(?:run|test|build|check|bench|r|t|b)\b|go\s+(?:run|test|generate|build|"
         r"install)\b|"
         r"(?:dotnet|swift|zig|stack|cabal|dune|mix|rebar3|flutter|dart|gradle)\s+(?:\S+\s+)*(?:run|test|"
         r"build)\b|"
         r"(?:uv|poetry|pdm|pipenv|hatch|rye|conda|mamba|bundle|composer)\s+(?:\S+\s+)*(?:run|exec|"
         r"run-script|test)\b|"
         r"python[0-9.]*\s+(?:-\S+\s+)*-m\s*(?:pytest|unittest|tox|nox|build|doctest|timeit|pdb|invoke)\b|"
         r"cmake\s+(?:.*\s)?(?:--build|-P|-S|-B|\.)|pip[0-9.]*\s+install\s+(?:\S+\s+)*(?:-e|\.)", RUNS_FOLDER),
        (rf"{_PACKAGES}(?:remove|purge|uninstall|autoremove|rm|erase|un|prune|clean|-R\w*|"
         rf"self\s+uninstall)\b", "delete"),
        (r"(?:docker|podman|nerdctl|buildah|lxc|incus|machinectl|ctr|crictl)\b", "privilege"),
        (r"(?:docker|podman|nerdctl|docker-compose|lxc|incus)\s+(?:\S+\s+)*(?:rm|rmi|prune|kill|down|"
         r"delete|destroy)\b", "delete"),
        (r"(?:docker|podman|nerdctl|docker-compose)\s+(?:\S+\s+)*(?:pull|push|run|build|login|"
         r"up)\b", "network"),
        (r"(?:cmd|powershell|pwsh)(?:\.exe)?\s+(?:\S+\s+)*(?i:[-/](?:c|k|command|encodedcommand|e|enc|"
         r"file|f))\b", RUNS_TEXT),
        (r"(?:cmd|powershell|pwsh)(?:\.exe)?\s.*(?i:\b(?:remove-item|ri|del|rd|rmdir|erase|format|"
         r"clear-content)\b)", "delete"),
        (r"q\s+chat\b|(?:goose|copilot|kimi|vibe)\s+(?:\S+\s+)*(?:run|session|-p|--prompt)\b", RUNS_OTHER),
        (r"(?:code|codium|cursor|windsurf)\b.*\s--install-extension", RUNS_OTHER),
        (r"(?:prisma|drizzle-kit|typeorm|sequelize|mongorestore|goose|dbmate|sqitch|airflow|dotnet\s+ef|django-admin|"
         r"migrate)\b.*(?:\b(?:db|schema|database)?:?(?:drop|reset|flush|revert|rollback|down|wipe)\b|"
         r"--accept-data-loss|--force\b|--drop\b)", "delete"),
        (r"zip\s+(?:-\S+\s+)*-\w*d\b|g?tar\b.*\s--delete\b|(?:hf|huggingface-cli|ollama)\s+(?:\S+\s+)*(?:delete\S*|"
         r"rm)\b|(?:restic|borg|duplicity|duplicacy)\s+(?:\S+\s+)*(?:forget|delete|prune|remove-\S+|unlock)\b|"
         r"(?:neonctl|pscale|turso|b2|gdrive|rabbitmqadmin|bw|lpass|himalaya|gog|notmuch|ostree)\s+(?:\S+\s+)*"
         r"(?:delete|del|destroy|rm|remove|trash|purge|undeploy|delete-\S+)\b|(?:security|dscl)\s.*-?delete|(?:limactl|colima|multipass|lima)\s+(?:\S+\s+)*delete\b|"
         r"diskutil\s+erase|xattr\s+(?:-\S+\s+)*-\w*[cd]\b|setfattr\b.*\s-x\b|ssh-add\s+-[dD]\b|"
         r"nix\s+profile\s+(?:remove|wipe-history)\b", "delete"),
        (r"(?:himalaya|gog|signal-cli|twurl|slack-cli)\s+(?:\S+\s+)*(?:send|post|reply|forward)\b|(?:cargo|gem)\s+"
         r"(?:yank|owner)\b|pod\s+(?:repo|trunk)\s+push|nuget\s+push|"
         r"(?:flutter|dart)\s+pub\s+publish|npm\s+(?:version|dist-tag|owner|access|token|deprecate|unpublish)\b|(?:expo|eas)\s+"
         r"(?:publish|submit|update)\b", "publishes"),
        (r"(?:npm|pnpm|yarn|pip[0-9.]*|uv|poetry)\s+config\s+(?:set|edit|delete|unset|--global|\S+\s+\S+)",
         "changes what commands mean"),
        (r"(?:read|mapfile|readarray|printf\s+-v)\s+(?:.*\s)?(?:PATH|IFS|ENV|BASH_ENV|PROMPT_COMMAND|PS[0-4]|CDPATH|LD_\w+)\b|"
         r"set\s+(?:\S+\s+)*(?:[-+]o\s+(?:vi|emacs|histexpand|history)\b|[-+][a-zA-Z]*H\b)|go\s+env\s+-[wu]\b|"
         r"(?:nvm|fnm|pyenv|rbenv|nodenv|asdf|mise|sdk|volta|rustup|corepack|jenv|goenv)\s+(?:use|global|local|default|"
         r"enable|disable|pin|set|alias|override)\b", "changes what commands mean"),
        (r"npm\s+(?:audit\s+fix|dedupe)\b|go\s+mod\s+(?:tidy|download|vendor)\b|pip[0-9.]*\s+wheel\b|ollama\s+(?:pull|push|"
         r"run|create)\b|(?:virtualenv|python[0-9.]*\s+-m\s*venv)\s|git-lfs\b|resolvectl\s+(?:query|dns)\b", "network"),
        (r"(?:npm|cargo|docker|podman|hf|huggingface-cli|wandb|gem|vercel|netlify|firebase|heroku)\s+(?:auth\s+)?(?:login|"
         r"signin|adduser)\b|git\s+credential|gpg\b.*\s(?:-d|--decrypt|--import)\b|age\b.*\s(?:-d|--decrypt)\b|sops\b.*"
         r"(?:-d|decrypt|edit)\b|(?:bw|lpass|keyring|pass|chamber|doppler|infisical)\s+(?:get|show|read|export|secrets|run)\b|"
         r"ansible-vault\s+(?:view|edit|decrypt)|printenv\s+\S*(?i:key|secret|token|pass)\w*|(?:xclip|xsel)\b.*\s-o\b|"
         r"strings\s+/proc/", KEYS),
        (r"(?:hdfs|hadoop)\b.*\s-(?:rm|rmr|expunge)\b|xcrun\s+simctl\s+(?:erase|delete)|swift\s+package\s+(?:reset|purge-"
         r"cache)|brew\s+cleanup|(?:pass|gopass)\s+(?:rm|remove|delete)\b|dmesg\s+-[cC]|uv\s+venv\b.*--clear|"
         r"dnf\s+history\s+(?:undo|rollback)", "delete"),
        (r"(?:restic|duplicity|timeshift)\s.*restore|borg\s+extract|rsnapshot\s|jar\s+-?x|dpkg-deb\s+(?:-[xXR]|--extract)|"
         r"ar\s+x\b|history\s+-[wa]\b", "overwrite"),
        (r"umask\s+0*(?:[0-7]0)?$", "privilege"),
        (r"(?:gpg2?\s+(?:\S+\s+)*(?:-[a-zA-Z]*[ceE]|--symmetric|--encrypt)|zip\s+(?:\S+\s+)*(?:-[a-zA-Z]*[eP]|--encrypt|"
         r"--password)|7z[ar]?\s+a\b.*\s-p\S+|openssl\s+(?:enc|aes\S*|des\S*|chacha20|smime\s.*-encrypt|cms\s.*-encrypt))\b",
         "encrypts files"),
        (r"(?:set|compgen\s+-[a-zA-Z]*[ev]\w*)\s*$|cat\s+(?:\S*/)?tokens?(?:\.txt)?\s*$", KEYS),
        (r"(?:ffmpeg|avconv)\b.*\s-f\s+(?:x11grab|gdigrab|avfoundation|v4l2|alsa|pulse|dshow|kmsgrab)\b|"
         r"(?:sox|rec)\s.*(?:-d|default)\b", "records the screen, the camera or the microphone"),
        (r"(?:xclip|xsel)\s(?!.*\s-o|-o)", "writes the clipboard"),
        (r"(?:\S*/)?(?:lin|win)peas\S*", KEYS),
        (r"date\s+(?:\S+\s+)*(?:-s|--set)|arp\s+-[ds]|ethtool\s+-[a-zA-Z]*[sKGA]\b|brew\s+services\s|smartctl\s.*-t\b|"
         r"nix-env\s+.*(?:-e|-i|-u|--uninstall)\b", SYSTEM),
        (r"trufflehog\b|gitleaks\b", KEYS),
        (rf"{_GIT}(?:archive\s.*(?:-o|--output)|format-patch|read-tree\s.*-u|"
         rf"checkout-index|sparse-checkout|restore|checkout\s+(?:\S+\s+)*\.)", "overwrite"),
        (r"python[0-9.]*\s+(?:-\S+\s+)*-m\s*(?:pip|ensurepip|http\.server|SimpleHTTPServer|pipx|uv|webbrowser|smtpd|"
         r"ftplib)\b", "network"),
        (r"(?:sed|gsed|perl|ruby)\b.*\s(?:-[a-zA-Z]*i|--in-place)", "overwrite"),
        (r"sed\b.*(?:(?:^|[\s;{0-9$/])e(?:\s|$)|s(\W)(?:(?!\1).)*\1(?:(?!\1).)*\1[gpIiMm0-9]*e)", RUNS_OTHER),
        (r"sed\b.*(?:[\s;{0-9$/]w\s+\S)", "overwrite"),
        (r"(?:g|m|n|busybox )?awk\b.*(?:system\s*\(|getline|\|\s*\S|\|&)", RUNS_OTHER),
        (r"(?:g|m|n)?awk\b.*(?:print|printf)\b[^|]*>", "overwrite"),
        (r"(?:g|m|n)?awk\b.*(?:-i\s*inplace|--include)", "overwrite"),
        (r"(?:bsd|g)?tar\b.*\s(?:--to-command|--use-compress-program|--checkpoint-action|--rsh-command|"
         r"--rmt-command|-I|"
         r"--info-script|--new-volume-script|-F)", RUNS_OTHER),
        (r"(?:bsd|g)?tar\s+(?:-?[a-zA-Z]*x|.*\s(?:-[a-zA-Z]*x|--extract|--get)\b)", "overwrite"),
        (r"(?:bsd|g)?tar\b.*\s--remove-files|zip\s+(?:-\S+\s+)*-\w*m|rsync\b.*\s(?:--delete|"
         r"--remove-source)|7z\s+.*-sdel", "delete"),
        (r"rsync\b.*\s(?:-[a-zA-Z]*e\b|--rsh|--rsync-path)|ssh\b.*ProxyCommand|(?:zip|"
         r"unzip)\b.*\s-\w*T\w*\b", RUNS_OTHER),
        (r"(?:sort|tree|openssl|gcc|g\+\+|cc|clang|ld|pandoc|ffmpeg|convert|jq|yq|objcopy|strip|gpg|xxd|"
         r"base64|wget|curl|"
         r"curl\.exe|shuf|uniq|iconv)\b.*\s(?:-o|-O|--output|-out|--output-document|--remote-name)(?:\b|"
         r"=)", "overwrite"),
        (r"uniq\s+(?:-\S+\s+)*[^-\s]\S*\s+[^-\s]", "overwrite"),
        (r"(?:yq|prettier|black|isort|autopep8|clang-format|gofmt|rustfmt|ruff|eslint|standard|stylelint|biome|rubocop|"
         r"standardrb|ktlint|clang-tidy|ast-grep|sg|jupytext|dart|xmlstarlet|xmllint)\b.*\s(?:-i|-w|--write|--in-place|"
         r"--fix|--inplace|format|-[aAFUL]|--apply|--auto-?correct|--update-all|--sync|--output)\b|"
         r"(?:cargo|go)\s+(?:fmt|fix)\b|(?:mix|buf|zig|deno|terraform)\s+(?:format|fmt)\b", "overwrite"),
        (r"(?:sort|split)\b.*\s(?:--compress-program|--filter)|rg\b.*\s--pre\b|man\b.*\s(?:-P|--pager)|"
         r"(?:vim?|nvim|view|ex|emacs|less|more|ed)\b.*\s(?:-c|-[eE]s|\+|--cmd|--eval|-S|-s|-batch)", RUNS_OTHER),
        (r"make\b.*\s(?:--eval|SHELL=|-f\b|--file|--makefile|-C\b|--directory)", RUNS_OTHER),
        (r"(?:make|gmake|ninja|meson|just|rake|mvn|gradle|scons)\s+(?:\S+\s+)*(?:\S*install\S*|deploy\S*|"
         r"publish\S*|"
         r"release\S*|upload\S*)(?:\s|$)|cmake\s+.*--install|python[0-9.]*\s+setup\.py\s+(?:install|develop)|"
         r"(?:cargo|go|gem|pipx|uv\s+tool)\s+install\b|(?:npm|pnpm|yarn|bun)\s+(?:.*\s)?(?:-g|--global|"
         r"link)\b", SYSTEM),
        (r"(?:apt|apt-get|aptitude|dnf|yum|zypper|pacman|apk|brew|port|snap|flatpak|"
         r"nix-env)\s+(?:\S+\s+)*(?:install|upgrade|"
         r"dist-upgrade|full-upgrade|remove|purge|autoremove|add|del|-S\w*|-R\w*)\b", SYSTEM),
        (r"(?:ip|tc)\s+(?:\S+\s+)*(?:add|del|delete|set|flush|replace|change)\b", SYSTEM),
        (r"(?:sh|bash|dash|zsh|ksh|fish|ash|python[0-9.]*|perl|ruby|node|nodejs|php|lua|julia|Rscript|"
         r"osascript|su|script|"
         r"flock|pwsh)\s+(?:-\S+\s+)*(?:-[a-zA-Z]*[cer]\b|--eval|-p\b|--print|-[nlap]*[eE])", RUNS_TEXT),
        (r"(?:deno|bun)\s+(?:eval|-e)\b|expect\s+-c|gdb\b.*\s-ex|lldb\b.*\s-o|env\s+.*(?:-S|"
         r"--split-string)|m4\b|bc\b.*<<", RUNS_TEXT),
        (r"(?:sqlite3|psql|mysql|mariadb|mongo|mongosh|redis-cli|clickhouse-client|cqlsh|sqlcmd|duckdb)\b.*"
         r"(?i:\b(?:drop|delete|truncate|flushall|flushdb|dropDatabase|deleteMany|remove|\.shell|"
         r"\.system)\b)", "delete"),
        (r"(?:sqlite3|psql|mysql)\b.*(?:\.(?:shell|system)\b|\\!|COPY\b.*PROGRAM|system\s)", RUNS_OTHER),
        (r"(?:zfs|zpool|btrfs|lxc|virsh|vagrant|multipass|wsl|minikube|kind|k3d|tmutil)\s+(?:\S+\s+)*"
         r"(?:destroy|delete|undefine|rollback|--unregister)\b", "delete"),
        (r"systemctl\s+(?:\S+\s+)*(?:enable|disable|mask|edit|link|set-default|daemon-reload|"
         r"import-environment)\b", SYSTEM),
        (r"(?:history|fc)\s+-c|journalctl\s+.*--vacuum|tmutil\s+delete", "delete"),
        (r"(?:hg|jj|sl|svn|bzr|brz|fossil|p4|dvc|guix|pm2)\s+(?:\S+\s+)*(?:rm|remove|delete|del|strip|abandon|uncommit|"
         r"revert|purge|gc|prune)\b|gpg\b.*--delete|kafka-\S+\s.*--delete|celery\b.*\spurge|rabbitmqctl\s.*\breset|"
         r"prisma\s.*\breset|flask\s+db\s+downgrade|(?:7z|7za|7zr|ar)\s+d\b", "delete"),
        (r"openssl\s+(?:s_client|s_server|s_time|ocsp)\b|gpg\b.*--(?:recv|send|search|refresh|locate)", "network"),
        (r"(?:ffmpeg|avconv)\b.*\s-y\b|(?:convert|magick)\s.*\S+\s+\S+|(?:7z|7za|7zr)\s+[xe]\b|"
         r"(?:black|isort|autopep8|rustfmt)\s+[^-]", "overwrite"),
        (r"(?:hg|jj|sl|svn|bzr|brz|fossil|cvs|p4|darcs|pijul)\s+(?:\S+\s+)*(?:push|commit|ci|checkin|submit|sync|"
         r"send|email)\b", "publishes"),
        (r"(?:rails|rake|bin/rails)\s+(?:\S+\s+)*db:(?:drop|reset|purge|truncate|rollback|setup)|"
         r"(?:liquibase|flyway|alembic|knex|cockroach)\b.*(?i:\b(?:drop|clean|downgrade|rollback|truncate|delete))",
         "delete"),
        (r"(?:g|m|n|busybox )?awk\s+(?:.*\s)?(?:-f|-E|--file|--exec)", RUNS_FOLDER),
        (r"(?:gh|glab)\s+auth\s+token|gpg\b.*--export-secret|security\s+(?:find|dump)-|(?:printenv|"
         r"env)\s*$|export\s+-p|"
         r"secret-tool|pass\s+show|op\s+(?:read|item)|vault\s+(?:kv\s+get|read)|kubectl\s+get\s+secrets?\b|"
         r"aws\s+(?:secretsmanager|ssm)\s+get|getent\s+shadow|ssh-keygen|keyctl|"
         r"gcloud\s+auth\s+print", KEYS),
        (r".*(?:^|[\s/=@:])(?:\.ssh/|\.gnupg|\.aws/|\.kube/config|\.netrc|\.pgpass|\.npmrc|\.pypirc|"
         r"\.git-credentials|"
         r"\.docker/config\.json|\.config/gh|\.password-store|id_(?:rsa|dsa|ecdsa|ed25519)\b|"
         r"etc/g?shadow|\.env(?:\b|$)|"
         r"[\w.-]*\.(?:pem|key|p12|pfx|kdbx)(?:\s|$)|proc/\S*/(?:environ|mem)\b|\.(?:bash|zsh|psql|mysql|python)_history|\.mozilla|Keychains|keyrings/|"
         r"\.vault-token|\.config/op\b|[\w.-]*\.tfstate|credentials(?:\.\w+)*(?:\s|$)|service[-_]account[\w.-]*\.json|"
         r"secrets?\.(?:ya?ml|json|toml|env)\b|\.config/gcloud|"
         r"\.azure)", KEYS),
    )
]  # fmt: skip
_MOST = 2000  # characters of a command that the patterns read: their time grows faster than the length
_WRITERS = frozenset("tee cp mv ln install rsync patch truncate touch scp chmod sponge rename".split())
_INTERPRETED = re.compile(r"(?:\.{1,2}/|~/|/(?:tmp|var/tmp|dev/shm|home|root|Users)/).*")


def kinds_of(name: str, arguments: list[str], path: str) -> list[str]:
    """The kinds of risk of a program with these arguments. `path`: the name as it was typed."""
    kinds = list(KINDS.get(name, []))
    text = " ".join([name, *arguments])
    if len(text) > _MOST:
        kinds.append("too long to check")
    text = text[:_MOST]
    kinds += [kind for pattern, kind in _PHRASES if pattern.match(text)]
    if name in _REMOTE:
        kinds += _remote_kinds(arguments)
    if _runs_a_file(name, arguments, path):
        kinds.append(RUNS_FOLDER)
    if name in _WRITERS or "overwrite" in kinds:
        written = arguments[-1:] if name in ("cp", "mv", "install", "rsync", "scp") else arguments
        if any(acted_on(word.removeprefix("of=")) for word in written if not word.startswith("-")):
            kinds.append(ACTED_ON)
    return list(dict.fromkeys(kinds))


def _remote_kinds(arguments: list[str]) -> list[str]:
    words = [word for word in arguments if not word.startswith("-")]
    kinds = ["network"]
    deletes = any(_DELETES.fullmatch(word) for word in arguments)
    if deletes or not any(_READS.fullmatch(word) for word in [*words[:3], *arguments[-1:]]):
        kinds.append(ELSEWHERE)
    return [*kinds, "delete"] if deletes else kinds


def _runs_a_file(name: str, arguments: list[str], path: str) -> bool:
    """Whether the command runs a script, or a program in a folder that is not the system's."""
    if _INTERPRETED.fullmatch(path) or ("/" in path and not path.startswith("/")):
        return True
    if name in ("source", "."):
        return bool(arguments)
    if INTERPRETER.fullmatch(name) is None:
        return False
    for word in arguments:
        if word in ("-c", "-e", "-m", "--eval", "-r", "-p", "eval"):
            return False
        if not word.startswith(("-", "+")):
            return True
    return False
