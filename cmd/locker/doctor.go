package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// Levels of a finding.
const (
	levelOK    = "ok"
	levelNote  = "note"  // worth knowing, and nothing to do
	levelWrong = "wrong" // something has to be done
)

// finding is the outcome of a check: a sentence, which says what to do if something is wrong.
type finding struct {
	Check string `json:"check"`
	Level string `json:"level"`
	Text  string `json:"text"`
}

// examination is the command doctor.
type examination struct {
	program  *program
	slow     time.Duration
	Healthy  bool      `json:"ok"`
	Findings []finding `json:"findings"`
}

func (p *program) doctor() *cobra.Command {
	x := &examination{program: p}
	var f format
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Report what is wrong with the locks and with etcd",
		Long: `Doctor looks for entries without a lease, clients of several versions of Locker, members of etcd
that do not answer, have no leader or lag behind the others, alarms, and little space, and it
measures how long a lock and an unlock of a name of its own take. It says what to do about
each. The exit code is 1 if anything is wrong, so it can be run by a monitor. What it may not
look at is said to be not checked.

It asks the members that --endpoints names.`,
		Example: `  locker doctor --endpoints etcd1:2379,etcd2:2379,etcd3:2379
  locker doctor -o json | jq -r '.findings[] | select(.level == "wrong") | .text'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := x.run(cmd.Context()); err != nil {
				return err
			}
			return x.print(f)
		},
	}
	outputFlag(cmd, &f)
	cmd.Flags().DurationVar(&x.slow, "slow", 500*time.Millisecond, "a lock and an unlock that take longer are wrong")
	return cmd
}

// add adds a finding.
func (x *examination) add(check, level, text string, args ...any) {
	x.Findings = append(x.Findings, finding{check, level, oneLine(fmt.Sprintf(text, args...))})
}

// failed adds the finding that a check was not possible. That a user may not look at
// something is not wrong.
func (x *examination) failed(check string, err error) {
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		x.add(check, levelNote, "not checked: this user may not do that (%v)", err)
		return
	}
	x.add(check, levelWrong, "not checked, because etcd did not answer: %v", err)
}

// run makes the checks: first those of each member, which do not need a majority of them.
func (x *examination) run(ctx context.Context) error {
	connection := &x.program.connection
	alone, err := connection.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = alone.Close() }()
	if !x.members(ctx, alone) {
		return ctx.Err()
	}
	c, etcd, stop, err := connection.open(ctx)
	var exit *exitError
	if errors.As(err, &exit) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		x.add("cluster", levelWrong, "%v; no lock can be taken: get a majority of the members to run", err)
		return nil
	}
	defer stop()
	x.alarms(ctx, etcd)
	x.locks(ctx, c)
	x.latency(ctx, c)
	return ctx.Err()
}

// print prints the findings, and returns the error that something is wrong.
func (x *examination) print(f format) error {
	bad := 0
	for _, found := range x.Findings {
		if found.Level == levelWrong {
			bad++
		}
	}
	x.Healthy = bad == 0
	var err error
	if f == formatJSON {
		err = printJSON(x.program.stdout, x, "  ")
	} else {
		lines := make([][]string, len(x.Findings))
		for i, found := range x.Findings {
			lines[i] = []string{found.Level, found.Check, found.Text}
		}
		err = printTable(x.program.stdout, []string{"RESULT", "CHECK", "FINDING"}, lines)
	}
	if err == nil && bad > 0 {
		err = &exitError{exitFailed, fmt.Errorf("%s wrong", plural(bad, "finding is", "findings are"))}
	}
	return err
}

// plural returns a number and the word for it.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// alarms looks for alarms.
func (x *examination) alarms(ctx context.Context, etcd *clientv3.Client) {
	const check = "alarms"
	ctx, cancel := context.WithTimeout(ctx, x.program.connection.dialTimeout)
	defer cancel()
	resp, err := etcd.AlarmList(ctx)
	if err != nil {
		x.failed(check, err)
		return
	}
	for _, alarm := range resp.Alarms {
		switch alarm.Alarm {
		case pb.AlarmType_NOSPACE:
			x.add(check, levelWrong, "member %x has no space left (NOSPACE): locks are kept and released, but none can be taken; compact, defragment, and disarm the alarm, see docs/operating.md", alarm.MemberID)
		case pb.AlarmType_CORRUPT:
			x.add(check, levelWrong, "the data of member %x differs from that of the others (CORRUPT): remove the member, add it again with an empty directory, and disarm the alarm", alarm.MemberID)
		default:
			x.add(check, levelWrong, "member %x has raised the alarm %v: see the documentation of etcd", alarm.MemberID, alarm.Alarm)
		}
	}
	if len(resp.Alarms) == 0 {
		x.add(check, levelOK, "no alarm is raised")
	}
}

// locks looks at the entries in the queues, and at the records of sessions.
func (x *examination) locks(ctx context.Context, c *locker.Client) {
	ctx, cancel := x.program.inTime(ctx)
	defer cancel()
	entries, err := c.Queues(ctx, "")
	if err != nil {
		x.failed("entries", err)
		return
	}
	x.entries(entries)
	owners, err := c.Owners(ctx)
	if err != nil {
		x.failed("sessions", err)
		return
	}
	x.versions(slices.Collect(maps.Values(owners)))
	for _, e := range entries {
		delete(owners, e.Lease)
	}
	if len(owners) > 0 {
		x.add("sessions", levelNote, "%s nothing and wait for nothing: there is nothing to do", plural(len(owners), "session of Locker holds", "sessions of Locker hold"))
	}
}

// entries looks for entries that do not go away by themselves.
func (x *examination) entries(entries []locker.Entry) {
	const check, most = "entries", 20
	stuck, foreign := 0, 0
	for _, e := range entries {
		if e.Owner == (locker.Owner{}) {
			foreign++
		}
		if e.Lease != 0 {
			continue
		}
		if stuck++; stuck <= most {
			x.add(check, levelWrong, "the entry with token %d in the queue of %q has no lease and stays until it is deleted: if its program is gone, %q", e.Token, e.Name, fmt.Sprintf("locker force-unlock %s --token %d", shellWord(e.Name), e.Token))
		}
	}
	if stuck > most {
		x.add(check, levelWrong, "%d more entries have no lease: %q lists those that hold a name, and %q those that wait for it as well, with LEASE none", stuck-most, "locker ls -o wide", "locker queue NAME")
	}
	if stuck == 0 {
		x.add(check, levelOK, "%s, all with a lease", plural(len(entries), "entry is in the queues", "entries are in the queues"))
	}
	if foreign > 0 {
		x.add(check, levelNote, "%s not of Locker, but for example of etcdctl lock", plural(foreign, "entry is", "entries are"))
	}
}

// versions looks for clients of several versions.
func (x *examination) versions(owners []locker.Owner) {
	const check = "versions"
	sessions := make(map[string]int)
	hosts := make(map[string]string) // one of those that have the version
	for _, owner := range owners {
		sessions[owner.Version]++
		hosts[owner.Version] = owner.Host
	}
	var all []string
	for _, version := range slices.Sorted(maps.Keys(sessions)) {
		all = append(all, fmt.Sprintf("%s (%s, for example on %s)", printable(version), plural(sessions[version], "session", "sessions"), printable(hosts[version])))
	}
	switch len(all) {
	case 0:
		x.add(check, levelOK, "no session of Locker is open")
	case 1:
		x.add(check, levelOK, "all sessions are of Locker %s", all[0])
	default:
		x.add(check, levelWrong, "sessions are of several versions of Locker, %s: finish the upgrade", strings.Join(all, ", "))
	}
}

// latency measures a lock and an unlock of a name that nobody else uses.
func (x *examination) latency(ctx context.Context, c *locker.Client) {
	const check, rounds = "latency", 5
	name := fmt.Sprintf("locker-doctor-%d-%d", os.Getpid(), time.Now().UnixNano())
	ctx, cancel := context.WithTimeout(ctx, x.program.connection.dialTimeout+rounds*x.slow)
	defer cancel()
	var took []time.Duration
	for range 1 + rounds { // the first opens a session
		start := time.Now()
		l, err := c.Lock(ctx, name, "")
		if err == nil {
			err = l.Unlock(ctx)
		}
		if errors.Is(err, rpctypes.ErrPermissionDenied) {
			x.failed(check, err)
			return
		}
		if err != nil {
			x.add(check, levelWrong, "a lock cannot be taken and released: %v", err)
			return
		}
		took = append(took, time.Since(start))
	}
	took = took[1:]
	slices.Sort(took)
	median := took[rounds/2].Round(10 * time.Microsecond)
	if median > x.slow {
		x.add(check, levelWrong, "a lock and an unlock take %v, longer than %v: look at the disks of etcd (etcd_disk_wal_fsync_duration_seconds) and at the network", median, x.slow)
		return
	}
	x.add(check, levelOK, "a lock and an unlock take %v", median)
}
