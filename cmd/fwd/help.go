package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Help is written once, in the commands, and printed from here as the text of
// --help; docs.go makes the reference and the manual page of the same parts.

// The parts of a command's help that cobra has no place for.
const (
	partArgs  = "arguments" // lines "NAME<tab>what it is"
	partEnv   = "env"       // variables beside those of the flags, likewise
	partExits = "exits"     // further exit codes, "3 6"
	partEnds  = "ends"      // exit codes of its own, lines "CODE<tab>what it says", in the place of all others
	partAlone = "alone"     // "yes": it holds commands and does something without one, too
)

func usageLine(cmd *cobra.Command) string {
	line := cmd.CommandPath() + strings.TrimPrefix(cmd.Use, cmd.Name())
	switch {
	case onlyHolds(cmd):
		line += " COMMAND"
	case cmd.Annotations[partAlone] != "":
		line += " [COMMAND]"
	}
	return line
}

// onlyHolds: the command does nothing but through those it holds.
func onlyHolds(cmd *cobra.Command) bool {
	return cmd.HasParent() && cmd.HasAvailableSubCommands() && cmd.Annotations[partAlone] == ""
}

func printHelp(w io.Writer, cmd *cobra.Command) {
	var b strings.Builder
	if cmd.HasParent() {
		fmt.Fprintf(&b, "Usage: %s\n\n%s\n", usageLine(cmd)+flagsWord(cmd), about(cmd))
	} else {
		fmt.Fprintf(&b, "Usage: fwd COMMAND [ARGUMENTS] [FLAGS]\n\n%s\n\n%s\n", about(cmd), indent(cmd.Example))
		for _, group := range cmd.Groups() {
			printRows(&b, strings.TrimSuffix(group.Title, ":"), commandRows(cmd, group.ID))
		}
	}
	if cmd.HasParent() && cmd.HasAvailableSubCommands() {
		printRows(&b, "Commands", commandRows(cmd, ""))
	}
	printRows(&b, "Arguments", partRows(cmd, partArgs))
	printRows(&b, "Flags", flagRows(cmd))
	if cmd.HasParent() && cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", indent(cmd.Example))
	}
	printRows(&b, "Environment", envRows(cmd))
	printRows(&b, "Exit status", exitRows(cmd))
	if !cmd.HasParent() {
		b.WriteString("\n\"fwd COMMAND --help\" tells more of one.\n")
	}
	io.WriteString(w, b.String())
}

func flagsWord(cmd *cobra.Command) string {
	if len(flagRows(cmd)) > 1 { // --json alone is not worth it
		return " [FLAGS]"
	}
	return ""
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}

// printRows prints a titled list of two columns, the first as wide as it needs.
func printRows(b *strings.Builder, title string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	width := 0
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(r[0]))
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	for _, r := range rows {
		fmt.Fprintf(b, "  %-*s  %s\n", width, r[0], r[1])
	}
}

func commandRows(parent *cobra.Command, group string) (rows [][2]string) {
	for _, c := range parent.Commands() {
		if c.GroupID == group && c.IsAvailableCommand() {
			rows = append(rows, [2]string{c.Name(), c.Short})
		}
	}
	return rows
}

func partRows(cmd *cobra.Command, part string) (rows [][2]string) {
	for line := range strings.Lines(cmd.Annotations[part]) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), "\t")
		rows = append(rows, [2]string{name, text})
	}
	return rows
}

func flagRows(cmd *cobra.Command) (rows [][2]string) {
	if !cmd.HasParent() {
		return nil
	}
	eachFlag(cmd, func(f *pflag.Flag) {
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		arg, usage := pflag.UnquoteUsage(f)
		if f.Value.Type() != "bool" {
			name += " " + arg
		}
		rows = append(rows, [2]string{name, usage})
	})
	return rows
}

func envRows(cmd *cobra.Command) (rows [][2]string) {
	rows = partRows(cmd, partEnv)
	if !cmd.HasParent() {
		return append(rows,
			[2]string{"FWD_HOME", "one folder for all that fwd keeps: key, roster, socket, log"},
			[2]string{"FWD_NETWORK", "as --network: which of several networks is meant"},
			[2]string{"FWD_INVITE", "the invite, for join and for the first up"},
			[2]string{"FWD_PASSPHRASE", "the passphrase of owner export and owner import"},
			[2]string{"FWD_LOG", "debug, info, warn or error: what the daemon writes to its log"},
			[2]string{"FWD_LOG_FORMAT", "text or json: how"},
			[2]string{"FWD_NO_LAN", "not empty, for the daemon: no mDNS; it neither announces itself on the LAN nor looks there"},
			[2]string{"FWD_NO_GUESSING", "not empty, for the daemon: no guessing of a NAT's ports"},
			[2]string{"FWD_JSON", "not empty: as --json"},
			[2]string{"FWD_…", "each flag of a command has one: FWD_CONNECT_TIMEOUT for connect --timeout"},
			[2]string{"HTTPS_PROXY", "the proxy through which the daemon may reach relays; also ALL_PROXY, NO_PROXY"},
			[2]string{"NO_COLOR", "not empty: no colour on a terminal either"})
	}
	if cmd.DisableFlagParsing {
		return rows
	}
	eachFlag(cmd, func(f *pflag.Flag) {
		rows = append(rows, [2]string{envName(cmd, f), "--" + f.Name})
	})
	return rows
}

// eachFlag visits the command's own flags and then those of all commands, if it reads them.
func eachFlag(cmd *cobra.Command, visit func(*pflag.Flag)) {
	shown := func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			visit(f)
		}
	}
	cmd.LocalNonPersistentFlags().VisitAll(shown)
	if !cmd.DisableFlagParsing {
		cmd.Root().PersistentFlags().VisitAll(shown)
	}
}

// exitRows are the codes that this command can give; the root lists all.
func exitRows(cmd *cobra.Command) (rows [][2]string) {
	if onlyHolds(cmd) {
		return nil
	}
	if ends := partRows(cmd, partEnds); ends != nil {
		return ends
	}
	codes := append([]string{"0", "1", "2", "130"}, strings.Fields(cmd.Annotations[partExits])...)
	for _, e := range exitStatus {
		if code := fmt.Sprint(e.code); !cmd.HasParent() || slices.Contains(codes, code) {
			rows = append(rows, [2]string{code, e.text})
		}
	}
	return rows
}
