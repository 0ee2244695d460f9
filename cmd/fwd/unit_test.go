package main

import (
	"encoding/xml"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

// units are the services that people have, by the name of their golden file.
func units() map[string]*unit {
	ann := daemon.Home{State: "/home/ann/.local/state/fwd", Config: "/home/ann/.config/fwd/fwd.toml"}
	mac := daemon.Home{State: "/Users/ann/Library/Application Support/fwd", Config: "/Users/ann/Library/Application Support/fwd/fwd.toml"}
	return map[string]*unit{
		"user.service":   {manager: "linux-systemd", exe: "/usr/local/bin/fwd", home: ann},
		"odd.service":    {manager: "linux-systemd", exe: `/opt/my "50%" $tools/fwd`, home: ann, file: "/home/ann/office.toml"},
		"system.service": {manager: "linux-systemd", system: true, exe: "/usr/local/bin/fwd", home: daemon.SystemHome()},
		"low.service":    {manager: "linux-systemd", system: true, exe: "/usr/local/bin/fwd", home: daemon.SystemHome(), low: true},
		"work.service":   {manager: "linux-systemd", exe: "/usr/local/bin/fwd", home: ann.In("work")},
		"agent.plist":    {manager: "darwin-launchd", exe: "/opt/homebrew/bin/fwd", home: mac},
		"daemon.plist":   {manager: "darwin-launchd", system: true, exe: "/opt/homebrew/bin/fwd", home: mac, user: "ann", file: "/etc/R&D.toml"},
	}
}

func (u *unit) text() string {
	if u.manager == "darwin-launchd" {
		return u.launchd()
	}
	return u.systemd()
}

func TestUnitsAreTheGoldenOnes(t *testing.T) {
	for name, u := range units() {
		file := filepath.Join("testdata", "units", name)
		if *update {
			if err := os.WriteFile(file, []byte(u.text()), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := u.text(); got != strings.ReplaceAll(string(want), "\r\n", "\n") {
			t.Errorf("%s is\n%s", file, got)
		}
	}
}

// What a service is told leads to the home and the configuration that its installation
// named, be the file there by then or not.
func TestAServiceReadsTheConfigurationThatWasNamed(t *testing.T) {
	dir := t.TempDir()
	ann := daemon.Home{State: filepath.Join(dir, "state", "fwd"), Config: filepath.Join(dir, "config", "fwd", "fwd.toml")}
	for name, u := range map[string]*unit{
		"user":   {manager: "linux-systemd", home: ann},
		"work":   {manager: "linux-systemd", home: ann.In("work")},
		"agent":  {manager: "darwin-launchd", home: ann},
		"system": {manager: "linux-systemd", system: true, home: daemon.SystemHome()},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{"FWD_HOME", "FWD_CONFIG", "FWD_SYSTEM"} {
				t.Setenv(v, u.environment()[v])
			}
			if words := u.arguments(); !slices.Equal(words, []string{"up"}) {
				t.Errorf("its words are %q", words)
			}
			if got := daemon.FindHome(); got.State != u.home.State || got.Config != u.configPath() {
				t.Errorf("it has the home %v, want %v", got, u.home)
			}
		})
	}
}

// systemd itself finds nothing wrong with the units, and the machine's are little
// exposed: 1.3 of 10 by its own count, 1.6 with a low port.
func TestSystemdTakesTheUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	// verify wants the program to be there, and man pages of the documentation.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, u := range units() {
		if u.manager != "linux-systemd" {
			continue
		}
		u.exe = exe
		file := filepath.Join(t.TempDir(), "fwd.service")
		if err := os.WriteFile(file, []byte(u.text()), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
		if err != nil || strings.Contains(string(out), "fwd.service") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if !u.system {
			continue
		}
		out, err = exec.Command(analyze, "security", "--offline=true", "--no-pager", file).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level.*: ([0-9.]+)`).FindSubmatch(out)
		if m == nil {
			t.Skipf("%s: this systemd-analyze counts no exposure offline: %v", name, err)
		}
		most := 1.5
		if u.low {
			most = 1.7
		}
		if score, _ := strconv.ParseFloat(string(m[1]), 64); score > most {
			t.Errorf("%s is exposed to %v, want at most %v\n%s", name, score, most, out)
		}
	}
}

// plutil reads the jobs where there is one; that they are XML is seen anywhere.
func TestLaunchdTakesTheJobs(t *testing.T) {
	plutil, missing := exec.LookPath("plutil")
	for name, u := range units() {
		if u.manager != "darwin-launchd" {
			continue
		}
		dec := xml.NewDecoder(strings.NewReader(u.text()))
		for {
			if _, err := dec.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if missing == nil {
			file := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(file, []byte(u.text()), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(plutil, "-lint", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	}
}

func TestAProgramInAHomeFolderIsNoMachineService(t *testing.T) {
	for path, want := range map[string]bool{
		"/home/ann/fwd": true, "/root/fwd": true, "/run/user/1000/fwd": true, "/usr/local/bin/fwd": false, "/homes/fwd": false,
	} {
		if hidden(path) != want {
			t.Errorf("hidden(%q) = %v", path, !want)
		}
	}
}

// Who types sudo has joined as a user, mostly.
func TestTheHomeOfWhoTypesSudoBecomesTheMachines(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Skip(err)
	}
	t.Setenv("FWD_HOME", "")
	t.Setenv("SUDO_USER", me.Username)
	t.Setenv("XDG_STATE_HOME", t.TempDir()) // root's, with nothing there
	xdg.Reload()
	t.Cleanup(xdg.Reload)
	if got, want := movingHome().Config, filepath.Join(me.HomeDir, ".config", "fwd", "fwd.toml"); got != want {
		t.Errorf("the configuration is that of %s, want %s", got, want)
	}
	dir := t.TempDir()
	t.Setenv("FWD_HOME", dir)
	if got := movingHome().State; got != dir {
		t.Errorf("the home is %s, want %s", got, dir)
	}
}

// Who has no home beside the machine's looks at its service, and makes none beside it.
func TestWhoUsesTheMachinesServiceMeansIt(t *testing.T) {
	ann := daemon.Home{State: "/home/ann/.local/state/fwd"}
	for _, c := range []struct {
		home  daemon.Home
		root  bool
		words []string
		want  bool
	}{
		{home: ann, want: false},
		{home: ann, root: true, want: true},
		{home: daemon.SystemHome(), want: true},
		{home: daemon.SystemHome().In("work"), want: false},
		{home: daemon.SystemHome(), words: []string{"--system=false"}, want: false},
		{home: ann, words: []string{"--system"}, want: true},
	} {
		cmd := new(cobra.Command)
		system := (&app{home: c.home, root: c.root}).systemFlag(cmd)
		if err := cmd.ParseFlags(c.words); err != nil {
			t.Fatal(err)
		}
		if got := system(); got != c.want {
			t.Errorf("%+v: the machine's: %v", c, got)
		}
	}
}
