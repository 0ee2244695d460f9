package main

import (
	"encoding/xml"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/kardianos/service"

	"fwd/internal/daemon"
)

// A unit is what a service manager is told of `fwd up`.
type unit struct {
	manager string // linux-systemd, darwin-launchd, windows-service
	system  bool
	exe     string
	home    daemon.Home
	file    string // fwd.toml if another than the home's
	user    string // whose the machine's service is on macOS
	low     bool   // it listens below port 1024
}

func (a *app) newUnit(system bool, config string) (*unit, error) {
	u := &unit{manager: service.Platform(), system: system || runtime.GOOS == "windows", exe: self(), home: a.home, file: config}
	switch {
	case u.moves() && a.home.Network != "":
		return nil, usageError("fwd service install -n "+a.home.Network+", as the user who joined it", "the machine's service is in one network; further ones are their users'")
	case u.moves():
		u.home = daemon.SystemHome()
	case u.home.System: // this user has none of its own yet
		u.home = daemon.UserHome()
	}
	if u.system && u.manager == "darwin-launchd" {
		u.user = os.Getenv("SUDO_USER")
	}
	return u, nil
}

// hidden is what ProtectHome hides.
func hidden(path string) bool {
	return slices.ContainsFunc([]string{"/home/", "/root/", "/run/user/"}, func(dir string) bool { return strings.HasPrefix(path, dir) })
}

// moves: the machine's service on Linux has a home of its own.
func (u *unit) moves() bool { return u.system && u.manager == "linux-systemd" }

// name is the service's, one for each network.
func (u *unit) name() string {
	if u.home.Network != "" {
		return serviceName + "-" + u.home.Network
	}
	return serviceName
}

func (u *unit) kind() string {
	if u.system {
		return "machine's service"
	}
	return "user's service"
}

func (u *unit) configPath() string {
	if u.file != "" {
		return u.file
	}
	return u.home.Config
}

// arguments of fwd.
func (u *unit) arguments() []string {
	if u.file != "" {
		return []string{"up", "--config", u.file}
	}
	return []string{"up"}
}

// environment of fwd. It names the home so that the service has the one that its
// installer saw, whatever the manager's environment; and not --config, since a file that
// is named there must be there.
func (u *unit) environment() map[string]string {
	if u.moves() {
		return map[string]string{"FWD_SYSTEM": "1"}
	}
	return map[string]string{"FWD_HOME": u.home.State, "FWD_CONFIG": u.home.Config}
}

// config is the unit in the words of kardianos/service.
func (u *unit) config() *service.Config {
	return &service.Config{
		Name:        u.name(),
		DisplayName: "fwd",
		Description: "fwd: ports of this machine's network",
		Executable:  u.exe,
		Arguments:   u.arguments(),
		EnvVars:     u.environment(),
		UserName:    u.user,
		Option: service.KeyValue{
			"UserService":            !u.system,
			"SystemdScript":          u.systemd(),
			"LaunchdConfig":          u.launchd(),
			"OnFailure":              "restart",
			"OnFailureDelayDuration": "1s",
			"OnFailureResetPeriod":   60,
		},
	}
}

// systemd's unit. The machine's is confined as far as systemd can; what each
// line is for stands in systemd.exec(5). AF_NETLINK lists interfaces. A user's
// manager may not confine, so there the lines that need no right remain.
func (u *unit) systemd() string {
	lines := []string{
		"[Unit]",
		"Description=fwd: ports of this machine's network",
		"Documentation=man:fwd(1)",
		"After=network.target nss-lookup.target",
		"StartLimitIntervalSec=0", // what it waits for may take long: a port, a file, a network
		"",
		"[Service]",
		"Type=notify",
		"ExecStart=" + systemdLine(u.exe, u.arguments()...),
		"ExecReload=" + systemdLine(u.exe, "reload"),
	}
	env := u.environment()
	for _, k := range slices.Sorted(maps.Keys(env)) {
		lines = append(lines, "Environment="+systemdWord(k+"="+env[k]))
	}
	lines = append(lines,
		"Restart=always",
		"RestartSec=1",
		"# 2: the configuration is wrong, 4: the invite is. A restart mends neither.",
		"RestartPreventExitStatus=2 4",
		"SuccessExitStatus=143",
		"WatchdogSec=30",
		"TimeoutStopSec=20",
		"UMask=0077",
		"LimitCORE=0",
	)
	target := "default.target"
	if u.system {
		lines = append(lines, u.confined()...)
		target = "multi-user.target"
	}
	lines = append(lines, "", "[Install]", "WantedBy="+target, "")
	return strings.Join(lines, "\n")
}

func (u *unit) confined() []string {
	capabilities, users := "", "yes"
	if u.low {
		// A port below 1024 wants this, and the machine's own user namespace.
		capabilities, users = "CAP_NET_BIND_SERVICE", "no"
	}
	return []string{
		"",
		"User=" + serviceName,
		"DynamicUser=yes",
		"StateDirectory=fwd",
		"StateDirectoryMode=0700",
		"RuntimeDirectory=fwd",
		"RuntimeDirectoryMode=0750",
		"LimitNOFILE=65536",
		"MemoryMax=2G", // what fwd bounds itself is 1.5 GiB at most: docs/operate.md
		"TasksMax=512",
		"",
		"NoNewPrivileges=yes",
		"CapabilityBoundingSet=" + capabilities,
		"AmbientCapabilities=" + capabilities,
		"ProtectSystem=strict",
		"ProtectHome=yes",
		"PrivateTmp=yes",
		"PrivateDevices=yes",
		"PrivateUsers=" + users,
		"PrivateIPC=yes",
		"ProtectProc=invisible",
		"ProcSubset=pid",
		"ProtectClock=yes",
		"ProtectHostname=yes",
		"ProtectControlGroups=yes",
		"ProtectKernelTunables=yes",
		"ProtectKernelModules=yes",
		"ProtectKernelLogs=yes",
		"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
		"RestrictNamespaces=yes",
		"RestrictRealtime=yes",
		"RestrictSUIDSGID=yes",
		"LockPersonality=yes",
		"MemoryDenyWriteExecute=yes",
		"RemoveIPC=yes",
		"DevicePolicy=closed",
		"SystemCallArchitectures=native",
		"SystemCallFilter=@system-service",
		"SystemCallFilter=~@privileged @resources",
		"SystemCallErrorNumber=EPERM",
	}
}

func (u *unit) journal(lines int, follow bool) []string {
	words := []string{"journalctl", "--unit", u.name()}
	if !u.system {
		words = []string{"journalctl", "--user", "--unit", u.name()}
	}
	words = append(words, "--lines", strconv.Itoa(lines))
	if follow {
		words = append(words, "--follow")
	}
	return words
}

// systemdLine is a command: in its arguments, but not in the program's path, a $
// would begin a variable (systemd.service(5), "Command lines").
func systemdLine(exe string, args ...string) string {
	line := systemdWord(exe)
	for _, w := range args {
		line += " " + strings.ReplaceAll(systemdWord(w), "$", "$$")
	}
	return line
}

// systemdWord quotes a word of a unit's line.
func systemdWord(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "\n", `\n`).Replace(s)
	if strings.ContainsAny(s, " \t'\"\\;") {
		return `"` + s + `"`
	}
	return s
}

// launchd's job. 63 is the umask 077; a job that ends is begun again after
// ThrottleInterval seconds.
func (u *unit) launchd() string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
`)
	key := func(name, value string) { b.WriteString("\t<key>" + name + "</key>\n\t" + value + "\n") }
	text := func(s string) string {
		var x strings.Builder
		xml.EscapeText(&x, []byte(s))
		return "<string>" + x.String() + "</string>"
	}
	key("Label", text(u.name()))
	words := "<array>\n"
	for _, w := range append([]string{u.exe}, u.arguments()...) {
		words += "\t\t" + text(w) + "\n"
	}
	key("ProgramArguments", words+"\t</array>")
	env := u.environment()
	vars := "<dict>\n"
	for _, k := range slices.Sorted(maps.Keys(env)) {
		vars += "\t\t<key>" + k + "</key>\n\t\t" + text(env[k]) + "\n"
	}
	key("EnvironmentVariables", vars+"\t</dict>")
	if u.user != "" {
		key("UserName", text(u.user))
	}
	key("RunAtLoad", "<true/>")
	key("KeepAlive", "<true/>")
	key("ThrottleInterval", "<integer>5</integer>")
	key("Umask", "<integer>63</integer>")
	key("StandardOutPath", text(u.home.Log()))
	key("StandardErrorPath", text(u.home.Log()))
	b.WriteString("</dict>\n</plist>\n")
	return b.String()
}
