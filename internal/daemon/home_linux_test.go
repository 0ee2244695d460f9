package daemon

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/adrg/xdg"
)

// machinesHome is the machine's own home, with nothing there, while t runs; a user
// without anything asks for it.
func machinesHome(t *testing.T) Home {
	dir := shortTemp(t)
	home, socket := systemHome, systemSocket
	t.Cleanup(func() { systemHome, systemSocket = home, socket })
	systemHome.State, systemHome.Config = filepath.Join(dir, "var"), filepath.Join(dir, "etc", "fwd.toml")
	systemSocket = filepath.Join(dir, "run", "fwd.sock")

	t.Setenv("FWD_HOME", "")
	t.Setenv("FWD_SYSTEM", "")
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	xdg.Reload()
	t.Cleanup(xdg.Reload)
	return systemHome
}

// An identity made while the service is stopped or begins anew would be the user's for good.
func TestTheMachinesHomeIsMeantWhileItsServiceIsStopped(t *testing.T) {
	system := machinesHome(t)
	if got := FindHome(); got != UserHome() {
		t.Errorf("without a service the home is %v", got)
	}
	// What DynamicUser leaves for a user who may not look behind it.
	if err := os.Symlink("private/fwd", system.State); err != nil {
		t.Fatal(err)
	}
	home := FindHome()
	if home != system {
		t.Fatalf("while the service is stopped the home is %v", home)
	}
	_, err := Start(t.Context(), home)
	if f := failureOf(err); f.Exit != ExitNoDaemon || f.Code != "no-daemon" || !strings.HasPrefix(f.Hint, "sudo systemctl start fwd") {
		t.Errorf("a command is told %+v", f)
	}
	err = Up(t.Context(), home, UpRequest{}, func(Event) {})
	if f := failureOf(err); f.Exit != ExitUsage || !strings.Contains(f.What, "belongs to the machine's service") {
		t.Errorf("fwd up is told %+v", f)
	}
	if _, err := os.Stat(UserHome().State); err == nil {
		t.Errorf("the user got a home")
	}

	user := UserHome()
	if err := os.MkdirAll(user.State, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, user.file("identity.key"), "")
	if got := FindHome(); got != user {
		t.Errorf("with an identity of one's own the home is %v", got)
	}
}

// A command that lasts waits for the service to come back, as it starts a daemon of its own again.
func TestAServiceThatStartsAgainIsWaitedFor(t *testing.T) {
	home := machinesHome(t)
	waited := make(chan error, 1)
	go func() { waited <- AwaitService(t.Context(), home) }() // ends with the service's answer
	if err := os.MkdirAll(filepath.Dir(systemSocket), 0o700); err != nil {
		t.Fatal(err)
	}
	// Of one that is just ending nobody is greeted.
	socket := func() net.Listener {
		l, err := net.Listen("unix", systemSocket)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	ending := socket()
	c, err := ending.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ending.Close()
	c.Close()
	l := socket()
	defer l.Close()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			json.NewEncoder(c).Encode(Greeting{API: APIVersion, Version: Version()})
		}
	}()
	if err := await(t, waited, "the service"); err != nil {
		t.Error(err)
	}
}

func TestARelayThatAStoppedServiceKeepsIsForgotten(t *testing.T) {
	home := machinesHome(t)
	if err := ForgetRelay(home); err != nil {
		t.Errorf("where nothing was kept: %v", err)
	}
	if err := os.Mkdir(home.State, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openState(home.file("daemon"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.change(func(f *stateFile) { f.Kept.Relay = &RelayRequest{} }); err != nil {
		t.Fatal(err)
	}
	service := os.Getuid()
	if service == 0 {
		service = 61184 // as root hands it over
		if err := os.Chown(home.State, service, service); err != nil {
			t.Skipf("root may not give a folder away here: %v", err)
		}
	}
	if err := ForgetRelay(home); err != nil {
		t.Fatal(err)
	}
	s, err = openState(home.file("daemon"))
	if err != nil || s.Kept.Relay != nil {
		t.Errorf("it is still kept: %v, %v", s, err)
	}
	info, err := os.Stat(home.file("daemon"))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Sys().(*syscall.Stat_t).Uid; int(got) != service {
		t.Errorf("the service's state is user %d's, want %d's", got, service)
	}
}

// What cannot be looked at was not changed.
func TestForgettingWhatCannotBeReadFails(t *testing.T) {
	home := machinesHome(t)
	write(t, filepath.Dir(home.State)+"/file", "")
	home.State = filepath.Dir(home.State) + "/file/fwd"
	if err := ForgetRelay(home); err == nil {
		t.Errorf("a home that cannot be looked at was told to be changed")
	}
}
