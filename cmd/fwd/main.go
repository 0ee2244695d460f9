// Fwd forwards ports between one's own machines, wherever they are.
//
// This package is words in, words out: arguments, help, messages and the exit
// status, one file a command. What a command wants is sent to the home's daemon
// (internal/daemon), which is started in the background if it does not run; what
// comes back is printed by the rules at the top of output.go. Nothing here knows
// libp2p, keys, or the roster.
//
// A command goes this way:
//
//  1. main.go: signals become the end of a context, the words become a command
//  2. flags.go: flags that were not given are read from their FWD_… variables
//  3. the command's own file: a request is made, events are printed
//  4. ask.go: the request goes to the daemon; what should last is repeated if the
//     daemon dies
//  5. exit.go: an error becomes two lines for a person, or an object for a
//     script, and the exit status, here and nowhere else
package main

import (
	"context"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func main() {
	// The mDNS library writes to the standard log, which nothing of ours does, whatever interface cannot do multicast.
	log.SetOutput(io.Discard)
	ctx, stop := withSignals(context.Background())
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is fwd with these words; it returns the exit status.
func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr *os.File) int {
	home := daemon.FindHome()
	a := &app{home: home, first: home, root: os.Geteuid() == 0, stdin: stdin, out: newOutput(stdout, stderr)}
	a.out.json = asksForJSON(args) // before the flags are read, since they may be what is wrong
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return a.finish(ctx, err)
}

// asksForJSON is what --json will have said, as far as the words show it.
func asksForJSON(args []string) bool {
	asked := envAsksForJSON()
	for _, word := range args {
		if value, ok := strings.CutPrefix(word, "--json="); ok {
			asked, _ = strconv.ParseBool(value)
		} else if word == "--json" {
			asked = true
		}
	}
	return asked
}

// envAsksForJSON: any word in FWD_JSON does, as in NO_COLOR.
func envAsksForJSON() bool { return os.Getenv("FWD_JSON") != "" }

// An app is one run of fwd: what all commands share.
type app struct {
	home  daemon.Home // of the network that is meant
	first daemon.Home // of the one that is meant without -n
	root  bool        // who runs it
	stdin *os.File
	out   *output

	network string // -n
}

// newRoot makes the command tree.
func newRoot(a *app) *cobra.Command {
	var version, json bool
	root := &cobra.Command{
		Use:   "fwd",
		Short: "forward ports between your own machines, wherever they are",
		Long: `fwd makes a port of one machine appear on another, through NAT and firewalls. You run
one small server, the relay. Traffic starts through it and moves to a direct path,
encrypted end to end, without dropping open connections.

A network is your machines; the machine that has its key, the owner, decides which they
are. To begin, run "fwd relay" on a server with a public address, and "fwd join" with the
invite it prints on the first machine ("fwd invite" there makes those for all others):`,
		Example: `fwd expose 22 --name nas       # on the machine that has the port
fwd connect nas 2222           # on another; then: ssh -p 2222 localhost
fwd demo                       # all of it on this machine, in a few seconds`,
		Args: func(cmd *cobra.Command, args []string) error { return unknownCommand(cmd, args) },
		RunE: func(cmd *cobra.Command, args []string) error {
			if version {
				a.version()
				return nil
			}
			printHelp(a.out.stderr, cmd)
			return errHelpShown
		},
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			a.out.json = json
			if err := readEnv(cmd); err != nil {
				return err
			}
			return a.chooseNetwork(cmd)
		},
		TraverseChildren: true, // fwd -n work ssh nas: what is behind ssh is its own
		SilenceErrors:    true,
		SilenceUsage:     true,
	}
	root.PersistentFlags().BoolVar(&json, "json", envAsksForJSON(), "print JSON: a listing is one value; long-running commands print one object per line")
	root.Flags().BoolVar(&version, "version", false, "print the version, as fwd version does")
	root.PersistentFlags().StringVarP(&a.network, "network", "n", "", "in the network that this machine calls `NAME`, if it is in several")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelp(a))
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(a.out.stdout, cmd) })
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(cmd.CommandPath()+" --help", "%s: %s", cmd.CommandPath(), flagMistake(err))
	})
	cobra.EnableCommandSorting = false // they stand in the order in which one meets them
	root.AddGroup(
		&cobra.Group{ID: groupForward, Title: "Forwarding:"},
		&cobra.Group{ID: groupNetwork, Title: "The network and its machines:"},
		&cobra.Group{ID: groupSelf, Title: "fwd itself:"},
	)
	root.AddCommand(
		newExpose(a), newConnect(a), newUnexpose(a), newDisconnect(a), newSocks(a), newSSH(a), newLs(a), newStatus(a), newUI(a), newPing(a), newSpeed(a), newDoctor(a), newAllow(a), newDeny(a),
		newRelay(a), newJoin(a), newInvite(a), newNetworks(a), newPeers(a), newRevoke(a), newRename(a), newTrust(a), newOwner(a), newLeave(a),
		newDemo(a), newUp(a), newReload(a), newConfig(a), newService(a), newLogs(a), newDebug(a), newID(a), newStop(a), newVersion(a), newCompletion(a), newMan(a), newDaemon(a),
	)
	addCompletions(a, root)
	hideHelp(root)
	return root
}

const (
	groupForward = "forward"
	groupNetwork = "network"
	groupSelf    = "self"
)

// withSignals gives a context that ends with the first SIGINT, SIGTERM or SIGHUP, the
// cause being which. The second one ends the process at once.
func withSignals(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // nohup has SIGHUP ignored, and so it stays
			signal.Notify(signals, s)
		}
	}
	go func() { // ends with the process
		s := <-signals
		signal.Stop(signals)
		cancel(&interrupted{s.(syscall.Signal)})
	}()
	return ctx, func() { cancel(nil) }
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (i *interrupted) Error() string { return i.signal.String() }

// Status is the shell's for a command ended by this signal: 130 for SIGINT, 143 for
// SIGTERM, 129 for SIGHUP.
func (i *interrupted) Status() int { return 128 + int(i.signal) }

func newHelp(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "say what a command does and how",
		GroupID: groupSelf,
		Hidden:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(cmd.Root(), args)
			}
			printHelp(a.out.stdout, target)
			return nil
		},
	}
}

// newDaemon is what the first command starts in the background.
func newDaemon(a *app) *cobra.Command {
	return &cobra.Command{
		Use:         "daemon",
		Short:       "run this home's background daemon",
		Hidden:      true,
		Args:        noArgs,
		Annotations: map[string]string{mayBeNew: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			err := daemon.RunBackground(cmd.Context(), a.home)
			if cmd.Context().Err() != nil {
				return nil // it was told to end, and did
			}
			return err
		},
	}
}
