package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fwd/internal/daemon"
)

// envName is the variable of a command's flag: FWD_CONNECT_TIMEOUT for
// `fwd connect --timeout`, FWD_OWNER_EXPORT_PASSPHRASE_FILE, and FWD_JSON for what
// all commands have.
func envName(cmd *cobra.Command, flag *pflag.Flag) string {
	path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())
	if cmd.Root().PersistentFlags().Lookup(flag.Name) == flag {
		path = ""
	}
	name := strings.TrimSpace(path) + " " + flag.Name
	return "FWD_" + strings.ToUpper(strings.NewReplacer(" ", "_", "-", "_").Replace(strings.TrimSpace(name)))
}

// readEnv gives each flag that was not on the command line its variable's value.
func readEnv(cmd *cobra.Command) (err error) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		// An empty word is mostly a variable that was not set: --allow "$WHO" must not
		// mean everybody.
		if text := f.Value.String(); f.Changed && err == nil && (text == "" || text == "[]") {
			err = usageError(cmd.CommandPath()+" --help", "%s: --%s is empty", cmd.CommandPath(), f.Name)
		}
		if f.Changed || err != nil || f.Name == "help" || f.Name == "json" { // FWD_JSON takes any word
			return
		}
		name := envName(cmd, f)
		value, ok := os.LookupEnv(name)
		if !ok || value == "" {
			return
		}
		if e := cmd.Flags().Set(f.Name, value); e != nil {
			err = usageError(cmd.CommandPath()+" --help", "%s=%s: %v", name, value, e)
		}
	})
	return err
}

// flagMistake says what is wrong with a flag, a number without Go's words for it.
func flagMistake(err error) string {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err.Error()
	}
	var number *strconv.NumError
	if errors.As(err, &number) {
		return fmt.Sprintf("--%s %s: a whole number is wanted", invalid.GetFlag().Name, invalid.GetValue())
	}
	return fmt.Sprintf("--%s %s: %v", invalid.GetFlag().Name, invalid.GetValue(), errors.Unwrap(invalid))
}

// hideHelp hides the --help that cobra gives each command: it is not worth a line.
func hideHelp(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		cmd.InitDefaultHelpFlag()
		cmd.Flags().Lookup("help").Hidden = true
		hideHelp(cmd)
	}
}

// words wants between min and max arguments, named as in the command's usage line.
func words(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		usage := usageLine(cmd)
		switch {
		case len(args) < min:
			names := strings.Fields(cmd.Use)[1:]
			return usageError(usage, "%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):min], " and "))
		case len(args) > max:
			return usageError(usage, "%s does not take %q", cmd.CommandPath(), args[max])
		}
		return nil
	}
}

func noArgs(cmd *cobra.Command, args []string) error { return words(0, 0)(cmd, args) }

// atMostOne refuses flags that mean different things.
func atMostOne(cmd *cobra.Command, names ...string) error {
	var given []string
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return usageError(cmd.CommandPath()+" "+given[0], "%s: %s do not go together", cmd.CommandPath(), strings.Join(given, " and "))
	}
	return nil
}

// alone refuses other flags beside those that make another command of it.
func alone(cmd *cobra.Command, names ...string) (err error) {
	for _, name := range names {
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != name && err == nil {
				err = atMostOne(cmd, name, f.Name)
			}
		})
	}
	return err
}

// unknownCommand says that the first word is none, and which is like it.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := cmd.CommandPath() + " --help"
	cmd.SuggestionsMinimumDistance = 2 // two letters wrong or exchanged
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = cmd.CommandPath() + " " + like[0]
	}
	return usageError(hint, "%s has no command %q", cmd.CommandPath(), args[0])
}

// subcommands is the Args of a command that only holds others.
func subcommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		var names []string
		for _, c := range cmd.Commands() {
			names = append(names, cmd.CommandPath()+" "+c.Name())
		}
		return usageError(strings.Join(names, ", or "), "%s needs a command", cmd.CommandPath())
	}
	return unknownCommand(cmd, args)
}

// A span is a flag's duration, read as in fwd.toml; 0 where none was given.
type span time.Duration

func (s *span) String() string {
	if *s == 0 {
		return ""
	}
	return time.Duration(*s).String()
}

func (s *span) Type() string { return "DURATION" }

func (s *span) Set(text string) error {
	d, err := daemon.ParseSpan(text)
	if err == nil {
		*s = span(d)
	}
	return err
}

// verboseVar is the flag -v of the commands that stay in the foreground.
func verboseVar(cmd *cobra.Command) *bool {
	return cmd.Flags().BoolP("verbose", "v", false, "show the whole log on a terminal too; else it has warnings, and \"fwd logs\" the rest")
}

// metricsVar is the flag --metrics of the commands that stay in the foreground.
func metricsVar(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "metrics", "", "serve Prometheus metrics at `ADDR`: a port of loopback (9464), or addr:port")
}

// spanVar is a duration flag; what it means and its default stand in usage.
func spanVar(cmd *cobra.Command, name, usage string) *span {
	s := new(span)
	cmd.Flags().Var(s, name, usage)
	return s
}
