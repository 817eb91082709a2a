package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
)

// machine describes the machine that the figures were measured on.
type machine struct {
	CPU       string  `json:"cpu"`
	Cores     int     `json:"cores"`
	MemoryGiB float64 `json:"memory_gib"`
	Disk      string  `json:"disk"`
	SyncMs    float64 `json:"fsync_ms"` // median for 4 KiB
	Kernel    string  `json:"kernel"`
	Go        string  `json:"go"`
	Etcd      string  `json:"etcd"`
	Date      string  `json:"date"`

	Peers []string `json:"peers,omitempty"` // servers with their settings, and libraries
}

// describeMachine describes this machine and the disk that dir is on. Details that cannot
// be determined are "unknown".
func describeMachine(dir string) (machine, error) {
	const unknown = "unknown"
	m := machine{
		CPU:    unknown,
		Cores:  runtime.NumCPU(),
		Disk:   unknown,
		Kernel: unknown,
		Go:     strings.TrimPrefix(runtime.Version(), "go"),
		Date:   time.Now().UTC().Format(time.DateOnly),
	}
	if info, err := cpu.Info(); err == nil && len(info) > 0 {
		m.CPU = info[0].ModelName
	}
	if vm, err := mem.VirtualMemory(); err == nil {
		m.MemoryGiB = float64(vm.Total) / (1 << 30)
	}
	if version, err := host.KernelVersion(); err == nil {
		m.Kernel = runtime.GOOS + " " + version
	}
	if fs := filesystem(dir); fs != "" {
		m.Disk = fs
	}
	fsync, err := syncTime(dir)
	m.SyncMs = float64(fsync) / float64(time.Millisecond)
	return m, err
}

func (m machine) String() string {
	text := fmt.Sprintf("%s, %d cores, %.0f GiB; %s, fsync %.2f ms; %s; Go %s, etcd %s; %s",
		m.CPU, m.Cores, m.MemoryGiB, m.Disk, m.SyncMs, m.Kernel, m.Go, m.Etcd, m.Date)
	if len(m.Peers) > 0 {
		text += "; " + strings.Join(m.Peers, ", ")
	}
	return text
}

// filesystem returns the type and the device of the file system that dir is on.
func filesystem(dir string) string {
	partitions, err := disk.Partitions(true)
	if err != nil {
		return ""
	}
	longest, found := -1, ""
	for _, p := range partitions {
		below, err := filepath.Rel(p.Mountpoint, dir)
		if err == nil && below != ".." && !strings.HasPrefix(below, "../") && len(p.Mountpoint) > longest {
			longest, found = len(p.Mountpoint), fmt.Sprintf("%s on %s", p.Fstype, filepath.Base(p.Device))
		}
	}
	return found
}

// syncTime returns the median time to append 4 KiB to a file and sync it to disk.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	var times []float64
	for range 100 {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times = append(times, float64(time.Since(began)))
	}
	return time.Duration(median(times)), nil
}
