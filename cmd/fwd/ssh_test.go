package main

import (
	"slices"
	"strings"
	"testing"

	"fwd/internal/daemon"
)

// The destination is found among ssh's own words, as rsync, git and people
// write them.
func TestTheDestinationIsFoundAmongSSHsWords(t *testing.T) {
	for words, want := range map[string]string{
		"nas":                              "nas",
		"ann@nas uptime -p":                "ann@nas",
		"-l ann nas rsync --server":        "nas",
		"-lann -4 nas":                     "nas",
		"-o SendEnv=GIT_PROTOCOL -p22 nas": "nas",
		"-vNL 8080:localhost:80 nas":       "nas",
		"-tt -- nas ls":                    "nas",
		"-G nas":                           "nas",
		"-i":                               "",
		"-l ann":                           "",
		"--":                               "",
		"":                                 "",
	} {
		args := strings.Fields(words)
		got := ""
		if at := sshHost(args); at >= 0 {
			got = args[at]
		}
		if got != want {
			t.Errorf("%q: destination %q, want %q", words, got, want)
		}
	}
}

func TestSSHIsCalledWithAHostKeyByName(t *testing.T) {
	for words, want := range map[string]string{
		"nas":                "ssh -o ProxyCommand=/bin/fwd connect nas.fwd - -o HostKeyAlias=nas.fwd -o CheckHostIP=no nas.fwd",
		"-4 a@b@Nas.FWD who": "ssh -o ProxyCommand=/bin/fwd connect nas.fwd - -o HostKeyAlias=nas.fwd -o CheckHostIP=no -4 a@b@nas.fwd who",
		"ssh.nas-box":        "ssh -o ProxyCommand=/bin/fwd connect ssh.nas-box.fwd - -o HostKeyAlias=ssh.nas-box.fwd -o CheckHostIP=no ssh.nas-box.fwd",
	} {
		args := strings.Fields(words)
		if got := strings.Join(new(app).sshArgs("/bin/fwd", args, sshHost(args)), " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", words, got, want)
		}
	}
}

// The first network has a name for -n too, but its machines are known by theirs alone.
func TestSSHGoesToTheNetworkThatWasNamed(t *testing.T) {
	for further, want := range map[string]string{
		"":     "ssh -o ProxyCommand=/bin/fwd -n work connect nas.fwd - -o HostKeyAlias=nas.fwd -o CheckHostIP=no nas.fwd",
		"work": "ssh -o ProxyCommand=/bin/fwd -n work connect nas.fwd - -o HostKeyAlias=nas.fwd.work -o CheckHostIP=no nas.fwd",
	} {
		a := &app{network: "work", home: daemon.Home{Network: further}}
		if got := strings.Join(a.sshArgs("/bin/fwd", []string{"nas"}, 0), " "); got != want {
			t.Errorf("home %q:\n got %s\nwant %s", further, got, want)
		}
	}
}

// A name from the command line is never the shell's to read.
func TestAProxyCommandIsQuoted(t *testing.T) {
	got := proxyCommand("/opt/my tools/50%/fwd", "", "nas;reboot'.fwd")
	if want := `'/opt/my tools/50%%/fwd' connect 'nas;reboot'\''.fwd' -`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSeveralAreNamesAndLocals(t *testing.T) {
	for words, ok := range map[string]bool{
		"nas:2222 web:8080 db:unix:/tmp/x": true, "nas:127.0.0.1:22": true,
		"nas:2222 web": false, "nas: web:1": false, ":1": false, "nas:-": false, "nas 2222": true, "nas 2222 web": false,
	} {
		args := strings.Fields(words)
		if err := oneOrSeveral(newConnect(&app{}), args); (err == nil) != ok {
			t.Errorf("%q: %v", words, err)
		}
	}
}

func TestTheLastOfAFlagsWordsIsCompleted(t *testing.T) {
	if got := whos(namesForTest); !slices.Contains(got, "tag:ops") || !slices.Contains(got, "members") {
		t.Errorf("--allow completes %q", got)
	}
}

var namesForTest = daemon.Names{Machines: []string{"laptop"}, Tags: []string{"ops"}}
