package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

// A service is `fwd up`, run by the system's own manager: systemd, launchd or
// Windows. What is told to the manager is in unit.go; here it is only handed
// over, by kardianos/service.

const serviceName = "fwd"

func newService(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "service",
		GroupID: groupSelf,
		Short:   "have the system run \"fwd up\"",
		Args:    subcommands,
		RunE:    func(cmd *cobra.Command, args []string) error { return nil },
	}
	cmd.AddCommand(newServiceInstall(a), newServiceUninstall(a), newServiceStatus(a), newServiceLogs(a))
	return cmd
}

// systemFlag: root's services are the machine's, since root seldom logs in; and who
// uses the machine's has none of his own.
func (a *app) systemFlag(cmd *cobra.Command) (system func() bool) {
	said := cmd.Flags().Bool("system", false, "the machine's service, not this user's; default for root, and for who uses that one")
	return func() bool {
		if cmd.Flags().Changed("system") {
			return *said
		}
		return a.root || a.home.System
	}
}

// mayChange: the machine's service is root's.
func (a *app) mayChange(system bool, word string) error {
	if system && runtime.GOOS != "windows" && !a.root {
		return failed("sudo fwd service "+word+"; one of this user's own: fwd service "+word+" --system=false",
			"the machine's service is root's to %s", word)
	}
	return nil
}

func newServiceInstall(a *app) *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "install, enable and start the service; again: anew",
		Long: `Have the system run "fwd up" from now on: as a service of this user, or as root
(or with --system) as one of the machine, which runs from boot.

On Linux the machine's service is confined by systemd and runs as the user fwd, who is
made for it. This user's identity, roster and fwd.toml move to it: to /var/lib/fwd and
/etc/fwd. Members of the group fwd may use it with the same commands. On macOS and
Windows it runs with the home in which this machine joined.`,
		Example: "fwd service install\nsudo fwd service install\nsudo usermod -aG fwd $USER    # then fwd status and the others need no sudo",
		Args:    noArgs,
	}
	system := a.systemFlag(cmd)
	cmd.Flags().StringVarP(&config, "config", "c", "", "the `FILE`; default fwd.toml in the configuration folder")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if config != "" {
			whole, err := filepath.Abs(config)
			if err != nil {
				return usageError("write the whole path", "%s: %v", config, err)
			}
			config = whole
			if _, err := daemon.CheckConfig(a.home, config); err != nil {
				return err
			}
		}
		return a.installService(cmd.Context(), system(), config)
	}
	return cmd
}

func (a *app) installService(ctx context.Context, system bool, config string) error {
	if err := haveManager(); err != nil {
		return err
	}
	if err := a.mayChange(system, "install"); err != nil {
		return err
	}
	u, err := a.newUnit(system, config)
	if err != nil {
		return err
	}
	if u.moves() && hidden(u.exe) {
		return failed("sudo install "+u.exe+" /usr/local/bin/ && sudo /usr/local/bin/fwd service install",
			"the machine's service sees no home folder, and this program is in one: %s", u.exe)
	}
	from, home := movingHome(), u.home
	if u.moves() {
		home = daemon.Becoming(from)
	}
	// Before anything is touched, since there may be a mistake in it.
	if u.low, err = daemon.WantsLowPort(home, config); err != nil {
		return err
	}
	s, err := service.New(nothing{}, u.config())
	if err != nil {
		return failed("", "install the service: %v", err)
	}
	if _, err := s.Status(); !errors.Is(err, service.ErrNotInstalled) {
		s.Stop() // it may not run
		if err := s.Uninstall(); err != nil {
			return failed("", "replace the service: %v", err)
		}
	}
	if u.moves() {
		if err := a.moveToSystem(ctx, from); err != nil {
			return err
		}
	}
	if err := s.Install(); err != nil {
		return failed("", "install the service: %v", err)
	}
	if err := s.Start(); err != nil {
		return failed("fwd service logs", "start the service: %v", err)
	}
	a.done("the service runs; its home is %s, its configuration %s", u.home.State, u.configPath())
	if runtime.GOOS == "linux" && !system {
		a.out.story("it ends when you log out, unless: sudo loginctl enable-linger %s", userName())
	}
	return nil
}

// haveManager: only managers that a unit is written for.
func haveManager() error {
	switch p := service.Platform(); p {
	case "linux-systemd", "darwin-launchd", "windows-service":
		return nil
	case "":
		return failed("run \"fwd up\" from the system's own init; docs/recipes.md has examples", "there is no service manager here that fwd knows")
	default:
		return failed("run \"fwd up\" from the system's own init; docs/recipes.md has examples", "fwd writes no service for %s", p)
	}
}

// movingHome is the home that becomes the machine's: root's if there is one, else that
// of who typed sudo.
func movingHome() daemon.Home {
	if daemon.HomeFolder() != "" {
		return daemon.FindHome()
	}
	home := daemon.UserHome()
	if name := os.Getenv("SUDO_USER"); name != "" && !home.HasIdentity() {
		if u, err := user.Lookup(name); err == nil {
			home = daemon.Home{State: filepath.Join(u.HomeDir, ".local/state/fwd"), Config: filepath.Join(u.HomeDir, ".config/fwd/fwd.toml")}
		}
	}
	return home
}

// moveToSystem makes what this user joined the machine's.
func (a *app) moveToSystem(ctx context.Context, from daemon.Home) error {
	if _, err := user.LookupGroup(serviceName); err != nil {
		// The group is what lets people use the service. Without useradd systemd makes
		// a user for the time it runs, and root alone can use it.
		if useradd, err := exec.LookPath("useradd"); err == nil {
			out, err := exec.Command(useradd, "--system", "--user-group", "--no-create-home", "--home-dir", daemon.SystemHome().State,
				"--shell", "/usr/sbin/nologin", serviceName).CombinedOutput()
			if err != nil {
				return failed("", "make the user fwd: %v: %s", err, out)
			}
			a.out.story("made the user and group fwd")
		}
	}
	moved, err := daemon.MoveToSystem(ctx, from)
	for _, line := range moved {
		a.out.story("%s", line)
	}
	return err
}

func newServiceUninstall(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:         "uninstall",
		Short:       "stop and remove the service; identity and configuration stay",
		Args:        noArgs,
		Annotations: map[string]string{partExits: "8"},
	}
	system := a.systemFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, u, err := a.service(system())
		if err != nil {
			return err
		}
		if _, err := s.Status(); errors.Is(err, service.ErrNotInstalled) {
			return notInstalled(u)
		}
		if err := a.mayChange(u.system, "uninstall"); err != nil {
			return err
		}
		s.Stop() // it may not run
		if err := s.Uninstall(); err != nil {
			return failed("", "remove the service: %v", err)
		}
		a.done("the service is gone; %s is as it was", u.home.State)
		return nil
	}
	return cmd
}

func notInstalled(u *unit) error {
	hint := "fwd service install"
	if u.system && runtime.GOOS != "windows" {
		hint = "sudo " + hint
	}
	return &daemon.Failure{Code: "not-installed", Exit: daemon.ExitNoDaemon, Hint: hint, What: "there is no " + u.kind() + " " + u.name()}
}

// service is the manager's, with the unit that belongs to it.
func (a *app) service(system bool) (service.Service, *unit, error) {
	if err := haveManager(); err != nil {
		return nil, nil, err
	}
	u, err := a.newUnit(system, "")
	if err != nil {
		return nil, nil, err
	}
	s, err := service.New(nothing{}, u.config())
	if err != nil {
		return nil, nil, failed("", "find the service: %v", err)
	}
	return s, u, nil
}

// serviceState is what `fwd service status --json` prints.
type serviceState struct {
	State   string              `json:"state"` // running, stopped, failed
	System  bool                `json:"system"`
	Manager string              `json:"manager"`
	Home    string              `json:"home"`
	Wishes  []daemon.WishStatus `json:"wishes"`
}

func newServiceStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:         "status",
		Short:       "say whether the service runs, and how what it should do fares",
		Args:        noArgs,
		Annotations: map[string]string{partExits: "8"},
	}
	system := a.systemFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, u, err := a.service(system())
		if err != nil {
			return err
		}
		state := serviceState{State: "stopped", System: u.system, Manager: service.Platform(), Home: u.home.State, Wishes: []daemon.WishStatus{}}
		status, err := s.Status()
		switch {
		case errors.Is(err, service.ErrNotInstalled):
			return notInstalled(u)
		case err != nil:
			state.State = "failed"
		case status == service.StatusRunning:
			state.State = "running"
		}
		quiet := &app{home: u.home, out: &output{stdout: io.Discard, stderr: io.Discard}}
		quiet.askRunning(cmd.Context(), daemon.StatusRequest{}, listed(quiet, "status", func(s daemon.Status) { state.Wishes = s.Wishes }))
		if a.out.json {
			a.out.object(state)
		} else {
			a.out.answer("the %s is %s (%s, home %s)", u.kind(), state.State, state.Manager, state.Home)
			for _, w := range state.Wishes {
				a.out.answer("  %s", strings.TrimSpace(w.Wish+": "+w.State+" "+w.Error))
			}
		}
		if state.State != "running" {
			return &daemon.Failure{Code: "not-running", Exit: daemon.ExitNoDaemon, Hint: "fwd service logs", What: "the service does not run"}
		}
		return nil
	}
	return cmd
}

func newServiceLogs(a *app) *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "show what the service, or else the background daemon, wrote",
		Args:  noArgs,
	}
	system := a.systemFlag(cmd)
	logFlags(cmd, &follow, &lines)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if lines < 0 {
			return usageError(usageLine(cmd), "--lines %d: less than none", lines)
		}
		return a.serviceLogs(cmd.Context(), system(), lines, follow)
	}
	return cmd
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "$USER"
}

// nothing satisfies kardianos/service where no program is to be run.
type nothing struct{}

func (nothing) Start(service.Service) error { return nil }
func (nothing) Stop(service.Service) error  { return nil }
